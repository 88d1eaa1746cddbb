"""The model card: README.md of a run and of its exported models, with the metadata that the Hub reads."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from pretraining.runs.card import sections
from pretraining.runs.card.sections import CardFacts
from pretraining.runs.history import RunHistory
from pretraining.runs.run_folder import CURVES_NAME
from pretraining.runs.tracking.metrics_file import EVALUATIONS
from pretraining.system.escapes import markdown_block, markdown_code, markdown_text
from pretraining.system.files import write_atomically
from pretraining.system.privacy import hide_paths_of_command, mask

CARD_NAME = "README.md"
TASK = "text-generation"
METRICS = {"loss": "Loss", "perplexity": "Perplexity", "accuracy": "Accuracy", "bits_per_byte": "Bits per byte"}
USAGE = """\
{code}

Or, with the programs that trained it: {command}."""
USAGE_CODE = """\
from transformers import pipeline

pipeline("text-generation", model={location})({prompt}, max_new_tokens=80)"""
NO_MODEL = """\
The model was not exported. If a checkpoint was kept, export it with
`python3 -m tools.checkpoints export CHECKPOINT OUT`."""
CARD = """\
---
{metadata}
---

# {name}

A Llama model of {num_parameters:,} parameters, {beginning} on {num_tokens:,} tokens, {num_epochs:.2f} epochs.
{others}{state}

{usage}

## Intended use and limits

{purpose}
{limits}

## Evaluation
{evaluation}
## Training data

{data}

## Training procedure

{recipe}

{command}

## Compute

{cost}
"""


def write_card(folder: Path, history: RunHistory, facts: CardFacts, *, location: str | None) -> None:
    """Write README.md and the curves into `folder`; `location` is the name by which the model is loaded, if any."""
    curves = history.run_dir / CURVES_NAME
    if curves.is_file() and folder != history.run_dir:
        (folder / CURVES_NAME).write_bytes(curves.read_bytes())
    record = history.run_record
    card = CARD.format(
        metadata=metadata(history, facts),
        name=markdown_text(facts.name),
        num_parameters=record["num_parameters"],
        beginning=sections.beginning(facts),
        others="It does not contain the weights of another model. " if facts.base is None else "",
        purpose=sections.purpose(facts),
        num_tokens=facts.num_tokens,
        num_epochs=facts.num_epochs,
        state=_state(facts.step, record["schedule"]["num_steps"]),
        usage=NO_MODEL if location is None else _usage(location, facts),
        limits="\n".join(sections.limits(record, facts)),
        evaluation="\n".join(sections.evaluation(history, curves=CURVES_NAME if curves.is_file() else None)),
        data="\n".join(sections.data(history.last, facts)),
        recipe="\n".join(sections.recipe(record, facts)),
        command=markdown_block(hide_paths_of_command(mask(record["command"])), language="bash"),
        cost="\n".join(sections.cost(history)),
    )
    write_atomically(folder / CARD_NAME, card.encode())


def _usage(location: str, facts: CardFacts) -> str:
    prompt = '"I wanna go"' if facts.base is None else '[{"role": "user", "content": "Where do you go?"}]'
    code = USAGE_CODE.format(location=json.dumps(location), prompt=prompt)
    command = f'python3 generate.py --model {shlex.quote(location)} --prompt "I wanna go"'
    return USAGE.format(code=markdown_block(code, language="python"), command=markdown_code(command))


def _state(step: int, num_steps: int) -> str:
    if step >= num_steps:
        return f"Training is finished, after {step:,} steps."
    return f"This is step {step:,} of {num_steps:,}: training is not finished."


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
