"""Read the completions that generate.py --output wrote, or another program in the same fields. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from pretraining.errors import UserError

FIELD_TYPES = {"prompt": str, "text": str, "tokens": list, "finish_reason": str}


@dataclass(frozen=True)
class SavedCompletion:
    """A line of a file of completions."""

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str


def read_completion_file(path: Path, *, flag: str) -> list[SavedCompletion]:
    """Read JSON lines with the fields prompt, text, tokens and finish_reason; `flag` names the file in errors.

    Raises:
        UserError: if the file cannot be read, or a line lacks a field.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error}); check the path") from None
    found = [_completion_of(f"{flag} {path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{flag} {path}: has no line; write it with generate.py --output")
    return found


def _completion_of(place: str, line: str) -> SavedCompletion:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    is_valid = isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in FIELD_TYPES.items()
    )
    if not is_valid or not all(isinstance(token, int) for token in content["tokens"]):
        fields = ", ".join(FIELD_TYPES)
        raise UserError(f"{place}: is not an object with {fields}; write the file with generate.py --output")
    return SavedCompletion(**{name: content[name] for name in FIELD_TYPES})
