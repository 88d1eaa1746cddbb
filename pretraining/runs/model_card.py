"""The model card: README.md of a run and of its exported models, with the metadata that the Hub reads.

Its text is model_card.jinja. What was not measured is omitted.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from pretraining.cli.arguments.preprocess import LICENSE
from pretraining.runs.history import RunHistory, format_significant
from pretraining.runs.run_folder import CURVES_NAME
from pretraining.runs.tracking.metrics_file import (
    EVALUATIONS,
    METRIC_FORMATS,
    describe_part,
    describe_task,
    task_metrics,
)
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
METADATA = re.compile(r"---\n(.*?)\n---(?:\n|\Z)", re.DOTALL)
MAX_METADATA_CHARACTERS = 1 << 16
MAX_FILES = 20  # named as sources; manifest.json has them all
FUNCTIONS = {"text": markdown_text, "code": markdown_code, "block": markdown_block, "quote": quote}
FUNCTIONS |= {"describe_task": describe_task, "count": "{:,}".format, "significant": format_significant}


@dataclass(frozen=True)
class CardData:
    """A block store that a model was trained on; `files` are Markdown.

    `share` is its fraction of all training blocks, `commit` that of the Hub. `conversations` counts those of all splits
    by format, if it has any.
    """

    name: str
    commit: str | None
    manifest_sha256: str
    num_documents: int
    num_tokens: int
    share: float
    files: Sequence[str]
    conversations: Mapping[str, int] | None = None


@dataclass(frozen=True)
class CardParent:
    """The model that a run started from: the xxh3 of its files of weights, and the license that its card names.

    `is_tuned`: the run taught it to answer, otherwise it trained on.
    """

    name: str
    hashes: Mapping[str, str]
    license_name: str | None
    is_tuned: bool


@dataclass(frozen=True)
class CardFacts:
    """What a model card needs that a run folder does not contain; no field has an absolute path of this machine.

    `license_name` is the Hub's name of the model's license, `parent` the model that it started from, `tokenizer` is
    Markdown, `phases` are lines of text.
    """

    name: str
    step: int
    num_tokens: int
    num_epochs: float
    data: Sequence[CardData]
    block_length: int
    tokenizer: str
    license_name: str | None
    parent: CardParent | None = None
    num_steps: int | None = None  # of the run; None if its schedule has as many
    phases: Sequence[str] = ()

    @property
    def is_tuned(self) -> bool:
        """Whether the model answers, rather than continues, text."""
        return self.parent is not None and self.parent.is_tuned


def write_card(folder: Path, history: RunHistory, facts: CardFacts, *, location: str | None) -> None:
    """Write README.md and the curves into `folder`; `location` is the name by which the model is loaded, if any."""
    curves = history.run_dir / CURVES_NAME
    if curves.is_file() and folder != history.run_dir:
        (folder / CURVES_NAME).write_bytes(curves.read_bytes())
    prompt = '"I wanna go"' if not facts.is_tuned else '[{"role": "user", "content": "Where do you go?"}]'
    card = template().render(
        record=history.run_record,
        facts=facts,
        history=history,
        location=location,
        metadata=metadata(history, facts),
        usage=USAGE.format(location=json.dumps(location), prompt=prompt),
        generate=f"python3 generate.py --model {shlex.quote(location or '')} "
        + ("--chat" if facts.is_tuned else '--prompt "I wanna go"'),
        evaluations=[row for prefix in EVALUATIONS if prefix in history.evaluations for row in _rows(history, prefix)],
        tasks=task_metrics(history.evaluations.get("eval", {})),
        curves=CURVES_NAME if curves.is_file() else None,
        max_files=MAX_FILES,
        command=hide_paths_of_command(mask(history.run_record["command"])),
    )
    write_atomically(folder / CARD_NAME, card.encode())


@cache
def template() -> jinja2.Template:
    """The text of a card, compiled: a process writes one for its run and one for each model that it exports."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= FUNCTIONS
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ParentCard:
    """License and held-out loss in nats from the model card of a parent; None for what it does not have."""

    license_name: str | None = None
    loss: float | None = None


def read_parent_card(model_dir: Path) -> ParentCard:
    """Read the card of a model or of its run; a card without readable metadata gives nothing."""
    paths = (model_dir / CARD_NAME, model_dir.parent / CARD_NAME)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return ParentCard()
    try:
        with path.open(encoding="utf-8") as file:
            found = METADATA.match(file.read(MAX_METADATA_CHARACTERS))
        metadata = {} if found is None else yaml.safe_load(found[1])
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        metadata = {}
    fields = metadata if isinstance(metadata, dict) else {}
    name = fields.get("license")
    known = name if isinstance(name, str) and LICENSE.fullmatch(name) else None
    return ParentCard(known, next(_losses(fields.get("model-index")), None))


def _losses(value: Any) -> Iterator[float]:
    """The losses in the evaluation results of a card, in their order: validation is first."""
    if isinstance(value, list):
        for item in value:
            yield from _losses(item)
    elif isinstance(value, dict):
        number = value.get("value")
        if value.get("type") == "loss" and isinstance(number, int | float) and not isinstance(number, bool):
            yield float(number)
        for name in ("results", "metrics"):
            yield from _losses(value.get(name))


def _rows(history: RunHistory, prefix: str) -> Iterator[list[str]]:
    """A row for the split, and one for each of its sources; cells of unknown metrics are empty."""
    record = history.evaluations[prefix]
    split = EVALUATIONS[prefix] + describe_part(record, prefix)
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
    origin: tuple[str, ...] = ("pretraining", "trained-from-scratch")
    if facts.parent is not None:
        origin = ("fine-tuned",) if facts.is_tuned else ("pretraining", "continued-pretraining")
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
        record = history.evaluations.get(prefix, {})
        for metric, name in METRICS.items():
            value = record.get(f"{prefix}_{metric}")
            if isinstance(value, (int, float)):
                yield EvalResult(
                    task_type=TASK,
                    dataset_type=_dataset_type(facts.data[0].name),
                    dataset_name=" ".join(data.name for data in facts.data),
                    dataset_split=split + describe_part(record, prefix),
                    dataset_revision=facts.data[0].commit,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 6),
                )


def _dataset_type(name: str) -> str:
    """A data set name in the characters that the Hub allows, also for one that is not on the Hub."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") if not re.fullmatch(r"[\w-]+/[\w.-]+", name) else name
