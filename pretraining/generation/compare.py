"""What several models, such as the checkpoints of a run, write to the same prompts: as lines and as a page.

The page has all it needs in itself, and nothing in it that a model wrote is taken for HTML.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from pretraining.errors import UserError
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import MODEL_DIR_NAME, checkpoint_step, complete_checkpoints, is_run_folder

TEMPLATE = Path(__file__).with_name("comparison_page.html")
SHOWN_CHARACTERS = 100  # of a text in a line


@dataclass(frozen=True)
class ModelSamples:
    """What one model wrote, a text for each prompt, and its figures by the names of the table's columns."""

    name: str
    texts: Sequence[str]
    figures: dict[str, str] = field(default_factory=dict)


def models_to_compare(words: Sequence[str]) -> dict[str, str]:
    """The models that `words` mean, by the names that they are shown under: of a run folder all that it has kept.

    Raises:
        UserError: when a run has kept none yet, or two have the same name.
    """
    found: dict[str, str] = {}
    for word in words:
        folder = Path(word)
        places = _models_of_run(folder) if is_run_folder(folder) else [folder]
        if not places:
            raise UserError(f"--models {word}: the run has neither an exported model nor a complete checkpoint yet")
        for place in places:
            name = place.name if len(words) == 1 and len(places) > 1 else str(place)
            if name in found:
                raise UserError(f"--models {word}: is named twice; name it once")
            found[name] = str(place)
    return found


def _models_of_run(run_dir: Path) -> list[Path]:
    """Complete checkpoints and exports by their steps, and the exported model unless it is the last of them."""
    by_step = {int(path.name.removeprefix("step-")): path for path in run_dir.glob("exports/step-*")}
    by_step |= {checkpoint_step(path) or 0: path for path in complete_checkpoints(run_dir)}
    models = [by_step[step] for step in sorted(by_step)]
    exported, last_step = run_dir / MODEL_DIR_NAME, read_run_record(run_dir)["arguments"]["max_steps"]
    return [*models, exported] if exported.is_dir() and last_step not in by_step else models


def comparison_lines(prompts: Sequence[str], models: Sequence[ModelSamples]) -> Iterator[str]:
    """The figures of each model in a line, then for each prompt how each goes on."""
    columns = list(dict.fromkeys(name for model in models for name in model.figures))
    width = max(len(model.name) for model in models)
    yield " ".join([" " * width, *(f"{name:>{_width(name)}}" for name in columns)]).rstrip()
    for model in models:
        yield " ".join([f"{model.name:<{width}}", *(f"{model.figures.get(c, ''):>{_width(c)}}" for c in columns)])
    for number, prompt in enumerate(prompts):
        yield f"\n{prompt}"
        for model in models:
            text = " ".join(model.texts[number].split())
            shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
            yield f"{model.name:<{width}} {shown}"


def _width(name: str) -> int:
    return max(10, len(name))


def comparison_page(title: str, prompts: Sequence[str], models: Sequence[ModelSamples], notes: Sequence[str]) -> str:
    """The same as HTML, each text in full; `notes` say how it was made."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    columns = list(dict.fromkeys(name for model in models for name in model.figures))
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, prompts=prompts, models=models, columns=columns, notes=notes)
