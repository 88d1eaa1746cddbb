"""A file of continuations that survives any interruption: one JSON object a line.

It grows as NAME.partial, whose first line says what it is made from, and each line is there as soon as its text has
ended. The same command goes on behind the last whole line; another one is refused. When all are there they are put in
the order of their prompts, and the file takes its name.
"""

import dataclasses
import hashlib
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.progress import Progress
from pretraining.errors import UserError
from pretraining.generation.batching import Request
from pretraining.generation.generate import Completion, continue_jobs
from pretraining.generation.source import ModelSource
from pretraining.system.files import check_new_file, write_atomically
from pretraining.system.locks import lock_file

# Flags that say where prompts and text are, how fast it is made, or what is told of it.
WHERE_IT_IS = ("prompt", "prompt_file", "interactive", "output", "model", "revision")
BESIDES_THE_TEXT = (*WHERE_IT_IS, "batch_size", "stats", "held_out", "blocks")
WEIGHTS = ("*.safetensors", "global_step*/*_optim_states.pt")

logger = logging.getLogger(__name__)

Key = tuple[int, int]  # number of the prompt, number of the sample
FIELD_TYPES = {field.name: typing.get_origin(field.type) or field.type for field in dataclasses.fields(Completion)}


def write_continuations(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    jobs: Sequence[Request],
    arguments: GenerateArguments,
    source: ModelSource,
) -> None:
    """Write the continuations that are not there yet, the file's name last; says how far it is, and how fast."""
    assert arguments.output is not None
    num_tokens = 0
    origin = _origin(jobs, arguments, source)
    prompts = {(job.prompt_number, job.sample_number): job.prompt for job in jobs}
    with OutputFile(arguments.output, origin, prompts) as output, Progress(len(jobs), "") as progress:
        left = [job for job in jobs if (job.prompt_number, job.sample_number) not in output.done]
        if output.done:
            logger.info("going on: %s of %s continuations are there", f"{len(output.done):,}", f"{len(jobs):,}")
        progress.skip(len(output.done))
        for continuation in continue_jobs(model, tokenizer, left, arguments=arguments):
            output.write(continuation)
            num_tokens += continuation.num_tokens
            progress.advance(1, f"{num_tokens:,} tokens, {num_tokens / progress.elapsed_seconds:,.0f} tokens/s")
        speed = num_tokens / progress.elapsed_seconds
        output.complete()
    logger.info("%s continuations, %s tokens/s: %s", f"{len(jobs):,}", f"{speed:,.0f}", arguments.output)


def read_continuations(path: Path) -> list[Completion]:
    """All that a finished file has."""
    return [Completion(**json.loads(line)) for line in path.read_bytes().splitlines()]


def _origin(jobs: Sequence[Request], arguments: GenerateArguments, source: ModelSource) -> dict[str, Any]:
    """All that decides the lines of a file: flags, prompts and weights."""
    flags = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in BESIDES_THE_TEXT}
    files = sorted(path for ending in WEIGHTS for path in Path(source.location).glob(ending))
    weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    prompts = json.dumps([job.prompt for job in jobs])
    return {
        **flags,
        "model": str(Path(source.location).resolve()),
        "weights": hashlib.sha256(repr(weights).encode()).hexdigest(),
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
    }


class OutputFile:
    """The file of --output while it grows, for these prompts; `done` has the keys of the lines that are there."""

    def __init__(self, path: Path, origin: dict[str, Any], prompts: Mapping[Key, str]) -> None:
        self.done: set[Key] = set()
        self._path = path
        self._prompts = prompts
        self._partial = path.with_name(path.name + ".partial")
        self._file = self._open(origin)

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, continuation: Completion) -> None:
        """Add a line; it outlives this process at once."""
        self._file.write(_line(dataclasses.asdict(continuation)))
        self._file.flush()

    def complete(self) -> None:
        """Put the lines in order under the file's name."""
        written = self._written(self._lines())
        write_atomically(self._path, b"".join(written[key] for key in sorted(written)))
        self._partial.unlink()

    def _open(self, origin: dict[str, Any]) -> IO[bytes]:
        check_new_file(self._path, flag="--output")
        file = self._partial.open("a+b")
        if not lock_file(file.fileno(), self._partial):
            raise UserError(f"--output {self._path}: another process writes it; choose another file")
        lines = self._lines()
        if lines:
            self._check_origin(lines[0], origin)
            self.done = set(self._written(lines))
            num_damaged = len(lines) - 1 - len(self.done)
            if num_damaged:
                logger.warning("%s: %d lines are damaged; their texts are generated again", self._partial, num_damaged)
        file.truncate(sum(map(len, lines)))  # half a line is what a kill left
        if not lines:
            file.write(_line(origin))
            file.flush()
        return file

    def _lines(self) -> list[bytes]:
        """The whole lines."""
        content = self._partial.read_bytes()
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def _written(self, lines: Sequence[bytes]) -> dict[Key, bytes]:
        """The continuations among the lines behind the first, by their keys; a damaged line is not one."""
        found = ((_key_and_prompt(line), line) for line in lines[1:])
        return {place[0]: line for place, line in found if place and self._prompts.get(place[0]) == place[1]}

    def _check_origin(self, line: bytes, origin: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = {}
        if not isinstance(found, dict) or found.keys() != origin.keys():
            raise UserError(f"--output {self._path}: {self._partial} is there and none of generate.py; move it away")
        changed = [
            f"{name} was {found[name]!r}" for name in origin if found[name] != json.loads(json.dumps(origin[name]))
        ]
        if changed:
            raise UserError(
                f"--output {self._path}: {self._partial} was begun by another command ({'; '.join(changed)}); "
                "give that one again, remove it, or choose another file"
            )


def _line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _key_and_prompt(line: bytes) -> tuple[Key, str] | None:
    """Numbers and prompt of a continuation, None of what is not one."""
    try:
        found = Completion(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    is_whole = all(type(getattr(found, name)) is kind for name, kind in FIELD_TYPES.items())
    return ((found.prompt_number, found.sample_number), found.prompt) if is_whole else None
