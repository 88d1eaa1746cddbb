"""The model card: README.md of a run and of its exported models, with the metadata that the Hub reads.

Its text is model_card.jinja. What was not measured is omitted.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from pretraining.runs.history import RunHistory, format_significant
from pretraining.runs.run_folder import CURVES_NAME
from pretraining.runs.tracking.metrics_file import EVALUATIONS, METRIC_FORMATS
from pretraining.system.escapes import markdown_block, markdown_code, markdown_text
from pretraining.system.files import write_atomically
from pretraining.system.privacy import hide_paths_of_command, mask

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.jinja")
TASK = "text-generation"
METRICS = {"loss": "Loss", "perplexity": "Perplexity", "accuracy": "Accuracy", "bits_per_byte": "Bits per byte"}
USAGE = """\
from transformers import pipeline

pipeline("text-generation", model={location})({prompt}, max_new_tokens=80)"""
MAX_FILES = 20  # named as sources; manifest.json has them all
FUNCTIONS = {"text": markdown_text, "code": markdown_code, "block": markdown_block, "quote": quote}
FUNCTIONS |= {"count": "{:,}".format, "significant": format_significant}


@dataclass(frozen=True)
class CardData:
    """A block store that a model was trained on; `files` are Markdown.

    `share` is its fraction of all training blocks, `commit` that of the Hub.
    """

    name: str
    commit: str | None
    manifest_sha256: str
    num_documents: int
    num_tokens: int
    share: float
    files: Sequence[str]


@dataclass(frozen=True)
class CardFacts:
    """What a model card needs that a run folder does not contain; no field has an absolute path of this machine.

    `license_name` is the Hub's name of the model's license, `base` the fine-tuned model, `tokenizer` is Markdown.
    """

    name: str
    step: int
    num_tokens: int
    num_epochs: float
    data: Sequence[CardData]
    block_length: int
    tokenizer: str
    license_name: str | None
    base: str | None = None


def write_card(folder: Path, history: RunHistory, facts: CardFacts, *, location: str | None) -> None:
    """Write README.md and the curves into `folder`; `location` is the name by which the model is loaded, if any."""
    curves = history.run_dir / CURVES_NAME
    if curves.is_file() and folder != history.run_dir:
        (folder / CURVES_NAME).write_bytes(curves.read_bytes())
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= FUNCTIONS
    prompt = '"I wanna go"' if facts.base is None else '[{"role": "user", "content": "Where do you go?"}]'
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        record=history.run_record,
        facts=facts,
        history=history,
        location=location,
        metadata=metadata(history, facts),
        usage=USAGE.format(location=json.dumps(location), prompt=prompt),
        generate=f'python3 generate.py --model {shlex.quote(location or "")} --prompt "I wanna go"',
        evaluations=[row for prefix in EVALUATIONS if prefix in history.evaluations for row in _rows(history, prefix)],
        curves=CURVES_NAME if curves.is_file() else None,
        max_files=MAX_FILES,
        command=hide_paths_of_command(mask(history.run_record["command"])),
    )
    write_atomically(folder / CARD_NAME, card.encode())


def _rows(history: RunHistory, prefix: str) -> Iterator[list[str]]:
    """A row for the split, and one for each of its sources; cells of unknown metrics are empty."""
    record, split = history.evaluations[prefix], EVALUATIONS[prefix]
    sources = [name.partition("/")[2] for name in record if name.startswith(f"{prefix}_loss/")]
    for name, suffix in [(split, ""), *((f"{split}, {markdown_text(source)}", f"/{source}") for source in sources)]:
        values = {metric: record.get(f"{prefix}_{metric}{suffix}") for metric in METRICS}
        known = {metric: value for metric, value in values.items() if isinstance(value, (int, float))}
        shown = [format(known[metric], METRIC_FORMATS[metric]) if metric in known else "" for metric in METRICS]
        if isinstance(values["loss"], str):  # "nan" or "inf"
            shown[0] = values["loss"]
        yield [name, f"{record['step']:,}", *shown]


def metadata(history: RunHistory, facts: CardFacts) -> str:
    """The YAML header, without the lines around it: tags, data and evaluation results, which the Hub validates."""
    origin = ("pretraining", "trained-from-scratch") if facts.base is None else ("fine-tuned",)
    card = ModelCardData(
        license=facts.license_name,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["llama", *origin, "deepspeed"],
        datasets=[data.name for data in facts.data if data.commit is not None] or None,
        model_name=facts.name,
        eval_results=list(_results(history, facts)) or None,
    )
    return card.to_yaml().strip()


def _results(history: RunHistory, facts: CardFacts) -> Iterator[EvalResult]:
    """The newest metrics of each split; the Hub rejects NaN and Inf."""
    for prefix, split in EVALUATIONS.items():
        for metric, name in METRICS.items():
            value = history.evaluations.get(prefix, {}).get(f"{prefix}_{metric}")
            if isinstance(value, (int, float)):
                yield EvalResult(
                    task_type=TASK,
                    dataset_type=_dataset_type(facts.data[0].name),
                    dataset_name=" ".join(data.name for data in facts.data),
                    dataset_split=split,
                    dataset_revision=facts.data[0].commit,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 6),
                )


def _dataset_type(name: str) -> str:
    """A data set name in the characters that the Hub allows, also for one that is not on the Hub."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") if not re.fullmatch(r"[\w-]+/[\w.-]+", name) else name
