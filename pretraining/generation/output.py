"""A file of completions that survives any interruption: one JSON object per line.

It grows as NAME.partial, whose first line records flags, prompts and weights; each further line is written as soon as
its completion is finished. The same command resumes after the last full line, another one is rejected. At the end the
lines are sorted by prompt and the file is renamed.
"""

import dataclasses
import hashlib
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.progress import Progress
from pretraining.errors import UserError
from pretraining.generation.batching import Request
from pretraining.generation.generate import Completion, complete_requests
from pretraining.runs.model_source import ModelSource
from pretraining.system.files import check_new_file, write_atomically
from pretraining.system.locks import lock_file

LOCATION_FLAGS = ("prompt", "prompt_file", "interactive", "chat", "system", "output", "model", "revision")
FLAGS_NOT_AFFECTING_TEXT = (*LOCATION_FLAGS, "batch_size", "stats", "reference_files", "blocks")
WEIGHTS = ("*.safetensors", "global_step*/*_optim_states.pt")

logger = logging.getLogger(__name__)

Key = tuple[int, int]  # prompt number, sample number
FIELD_TYPES = {field.name: typing.get_origin(field.type) or field.type for field in dataclasses.fields(Completion)}


def write_completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    arguments: GenerateArguments,
    source: ModelSource,
) -> None:
    """Generate the completions that --output does not have yet, and log progress and speed."""
    assert arguments.output is not None
    num_tokens = 0
    origin = _origin(requests, arguments, source)
    prompts = {request.key: request.prompt for request in requests}
    with OutputFile(arguments.output, origin, prompts) as output, Progress(len(requests), "") as progress:
        missing = [request for request in requests if request.key not in output.done]
        if output.done:
            logger.info("resuming: %s of %s completions are done", f"{len(output.done):,}", f"{len(requests):,}")
        progress.skip(len(output.done))
        for completion in complete_requests(model, tokenizer, missing, arguments=arguments):
            output.write(completion)
            num_tokens += completion.num_tokens
            progress.advance(1, f"{num_tokens:,} tokens, {num_tokens / progress.elapsed_seconds:,.0f} tokens/s")
        speed = num_tokens / progress.elapsed_seconds
        output.finalize()
    logger.info("%s completions, %s tokens/s: %s", f"{len(requests):,}", f"{speed:,.0f}", arguments.output)


def read_completions(path: Path) -> list[Completion]:
    """Read a finished file."""
    return [Completion(**json.loads(line)) for line in path.read_bytes().splitlines()]


def _origin(requests: Sequence[Request], arguments: GenerateArguments, source: ModelSource) -> dict[str, Any]:
    """Everything that determines the lines of a file: flags, prompts and weights."""
    flags = dataclasses.asdict(arguments)
    files = sorted(path for pattern in WEIGHTS for path in Path(source.location).glob(pattern))
    weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    prompts = json.dumps([request.prompt for request in requests])
    return {
        **{name: value for name, value in flags.items() if name not in FLAGS_NOT_AFFECTING_TEXT},
        "model": str(Path(source.location).resolve()),
        "weights": hashlib.sha256(repr(weights).encode()).hexdigest(),
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
    }


class OutputFile:
    """The growing file of --output; `done` has the keys of its completions."""

    def __init__(self, path: Path, origin: dict[str, Any], prompts: Mapping[Key, str]) -> None:
        self.done: set[Key] = set()
        self._path = path
        self._prompts = prompts
        self._partial = path.with_name(path.name + ".partial")
        self._file = self._open(origin)

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, completion: Completion) -> None:
        """Append a line; it survives a kill of this process."""
        self._file.write(_as_line(dataclasses.asdict(completion)))
        self._file.flush()

    def finalize(self) -> None:
        """Sort the lines into the file's final name."""
        completions = self._completions(self._full_lines())
        write_atomically(self._path, b"".join(completions[key] for key in sorted(completions)))
        self._partial.unlink()

    def _open(self, origin: dict[str, Any]) -> IO[bytes]:
        check_new_file(self._path, flag="--output")
        file = self._partial.open("a+b")
        if not lock_file(file.fileno(), self._partial):
            raise UserError(f"--output {self._path}: another process writes it; choose another file")
        lines = self._full_lines()
        if lines:
            self._check_origin(lines[0], origin)
            self.done = set(self._completions(lines))
            num_damaged = len(lines) - 1 - len(self.done)
            if num_damaged:
                logger.warning("%s: %d lines are damaged and are generated again", self._partial, num_damaged)
        file.truncate(sum(map(len, lines)))  # removes the partial line of a killed process
        if not lines:
            file.write(_as_line(origin))
            file.flush()
        return file

    def _full_lines(self) -> list[bytes]:
        content = self._partial.read_bytes()
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def _completions(self, lines: Sequence[bytes]) -> dict[Key, bytes]:
        """The undamaged completions after the first line, by key."""
        found = ((_parse_completion(line), line) for line in lines[1:])
        return {one.key: line for one, line in found if one and self._prompts.get(one.key) == one.prompt}

    def _check_origin(self, line: bytes, origin: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = {}
        if not isinstance(found, dict) or found.keys() != origin.keys():
            raise UserError(f"--output {self._path}: {self._partial} was not written by generate.py; move it away")
        wanted = json.loads(json.dumps(origin))
        changed = [f"{name} was {found[name]!r}" for name in origin if found[name] != wanted[name]]
        if changed:
            raise UserError(
                f"--output {self._path}: {self._partial} was started by another command ({'; '.join(changed)}); "
                "rerun that command, remove the file, or choose another one"
            )


def _as_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _parse_completion(line: bytes) -> Completion | None:
    """The completion of a line, None if the line is damaged."""
    try:
        found = Completion(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return found if all(type(getattr(found, name)) is kind for name, kind in FIELD_TYPES.items()) else None
