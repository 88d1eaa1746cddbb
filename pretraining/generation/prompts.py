"""Read prompts from flags, stdin or a file; check that a model has a template for messages."""

import json
import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from pretraining.cli.arguments.generate import DEFAULT_PROMPT, GenerateArguments
from pretraining.errors import UserError, reading
from pretraining.system.checked_json import parse_json

STDIN = "-"
NUM_SHOWN = 40  # characters of a prompt in a message

logger = logging.getLogger(__name__)


def read_prompts(arguments: GenerateArguments) -> list[str]:
    """The prompts of --prompt, of the lines of stdin or of --prompt_file; blank lines are skipped.

    Raises:
        UserError: if the file cannot be read, or a prompt is blank.
    """
    if arguments.prompt_file is not None:
        place = f"--prompt_file {arguments.prompt_file}"
        prompts = _lines_of(_read(place, arguments.prompt_file), place, arguments.prompt_file.suffix)
    elif arguments.prompt == [STDIN] or (arguments.prompt is None and _is_piped()):
        logger.info("prompts: the lines of stdin, up to its end")
        place = "--prompt -: stdin"
        content = b"" if sys.stdin is None else sys.stdin.buffer.read()  # None where it was closed
        prompts = _lines_of(_text_of(content, place), place, "")
    else:
        prompts = arguments.prompt or [DEFAULT_PROMPT]
    if not all(prompt.strip() for prompt in prompts if prompt):  # an empty one is valid if the model has BOS
        raise UserError("--prompt: is empty; pass at least one word")
    for prompt in prompts:
        check_text(prompt)
    return prompts


def stdin_lines(place: str) -> Iterator[str]:
    """The lines of stdin, each as soon as it is there, without their ends; `place` names stdin in errors.

    Raises:
        UserError: if one is not UTF-8.
    """
    if sys.stdin is not None:  # None where it was closed
        for line in sys.stdin.buffer:
            yield _text_of(line, place).removesuffix("\n")


def check_chat_template(tokenizer_dir: Path) -> None:
    """Reject a model that was not trained to chat.

    Raises:
        UserError: if its tokenizer has no chat template.
    """
    config = tokenizer_dir / "tokenizer_config.json"
    with reading(f"--model: {config}", remedy="copy or download the model again"):
        fields = parse_json(config.read_bytes()) if config.is_file() else {}
        has_template = fields.get("chat_template") is not None or (tokenizer_dir / "chat_template.jinja").is_file()
    if not has_template:
        raise UserError(
            f"--model {tokenizer_dir}: has no chat template, so it continues text; use --prompt, or teach it to chat "
            "with finetune.py"
        )


def check_text(prompt: str) -> None:
    """Reject invalid UTF-8: a shell, a terminal and JSON can all pass a lone surrogate.

    Raises:
        UserError: if the prompt has one.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"--prompt {prompt[:NUM_SHOWN]!r}: is not UTF-8 text; check the terminal's settings") from None


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file; any other stdin that is not a terminal may never end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(place: str, path: Path) -> str:
    try:
        return _text_of(path.read_bytes(), place)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); check the path") from None


def _text_of(content: bytes, place: str) -> str:
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{place}: is not UTF-8 text; save it as UTF-8") from None


def _lines_of(text: str, place: str, suffix: str) -> list[str]:
    lines = text.split("\n")
    if suffix == ".jsonl":
        prompts = [_field(line, f"{place}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    else:
        prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{place}: has no line with a prompt; add one")
    return prompts


def _field(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{place}: is not an object with a text in its field prompt; write {{"prompt": "..."}}')
    return prompt
