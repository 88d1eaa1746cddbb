"""The model card: README.md of a run and of what it exports, for people, and as the Hub reads it."""

import json
import shlex
from pathlib import Path

from pretraining.runs.card import sections as sections
from pretraining.runs.card.facts import CardFacts
from pretraining.runs.card.metadata import metadata
from pretraining.runs.history import RunHistory
from pretraining.runs.run_folder import CURVES_NAME
from pretraining.system.escapes import markdown_block, markdown_code, markdown_text
from pretraining.system.privacy import hide_paths_of_command, mask

CARD_NAME = "README.md"
USAGE = """\
{code}

Or, with the programs that made it: {command}."""
USAGE_CODE = """\
from transformers import pipeline

pipeline("text-generation", model={location})({prompt}, max_new_tokens=80)"""
NO_MODEL = """\
It was not exported. Where a checkpoint was kept, `python3 -m tools.checkpoints export CHECKPOINT OUT` makes a model of
it."""
CARD = """\
---
{metadata}
---

# {name}

A Llama of {num_parameters:,} parameters, {beginning} on {num_tokens:,} tokens, {num_epochs:.2f} epochs.
{others}{state}

{usage}

## What it is for

{purpose}
{limits}

## How good it is
{evaluation}
## What it was trained on

{data}

## How it was trained

{recipe}

{command}

## What it took

{cost}
"""


def write_card(folder: Path, history: RunHistory, facts: CardFacts, *, location: str | None) -> None:
    """Write README.md into `folder`, with the curves beside it; `location` is the name that opens its model, if any."""
    curves = history.run_dir / CURVES_NAME
    if curves.is_file() and folder != history.run_dir:
        (folder / CURVES_NAME).write_bytes(curves.read_bytes())
    record = history.run_record
    card = CARD.format(
        metadata=metadata(history, facts),
        name=markdown_text(facts.name),
        num_parameters=record["num_parameters"],
        beginning=sections.beginning(facts),
        others="No other model went into it. " if facts.base is None else "",
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
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _usage(location: str, facts: CardFacts) -> str:
    prompt = '"I wanna go"' if facts.base is None else '[{"role": "user", "content": "Where do you go?"}]'
    code = USAGE_CODE.format(location=json.dumps(location), prompt=prompt)
    command = f'python3 generate.py --model {shlex.quote(location)} --prompt "I wanna go"'
    return USAGE.format(code=markdown_block(code, language="python"), command=markdown_code(command))


def _state(step: int, num_steps: int) -> str:
    if step >= num_steps:
        return f"The training is finished, after {step:,} steps."
    return f"This is step {step:,} of {num_steps:,}: the training is not finished."
