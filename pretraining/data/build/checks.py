"""Abort conditions of preprocess.py: too many unreadable lines, no block, a disk that cannot be written."""

import contextlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build.progress import SliceProgress
from pretraining.data.build.working_files import partial_dir
from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.splits import SPLITS
from pretraining.data.input.documents import CLEANED, REMOVED
from pretraining.data.input.files import InputFile
from pretraining.data.input.reading import ENOUGH_LINES
from pretraining.data.input.token_files import reading_of_flat_file
from pretraining.data.store.manifest import StoreSpec
from pretraining.errors import UserError, raise_problems

logger = logging.getLogger(__name__)

ENOUGH_BYTES = 16 << 20  # without any document: most likely a wrong --text_field


# What needs the text of documents: filters need that of all of them, the others are of no use if no file has any.
FILTER_FLAGS = ("min_characters", "max_characters", "language_hook", "exact_duplicates", "near_duplicates")
TEXT_FLAGS = ("text_field", "source_field", "split_text_files", "tokenizer_backend")

TEXT_FIELD_REMEDY = "use the right --text_field"
REMEDIES = {  # of reasons of the first unreadable line
    "no_text_field": TEXT_FIELD_REMEDY,
    "text_is_null": TEXT_FIELD_REMEDY,
    "text_not_a_string": TEXT_FIELD_REMEDY,
    "not_json": "use JSON lines or Parquet if it is CSV",
}
NAME_OF_FIELD = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')


class NoDocumentError(UserError):
    """So much input without a document that reading the rest is of no use."""


def check_token_inputs(arguments: PreprocessArguments, files: Sequence[InputFile]) -> None:
    """Reject flags of text where the input is token ids.

    Raises:
        UserError: with each such flag.
    """
    tokens = [file.path for file in files if file.format == "tokens"]
    names = FILTER_FLAGS + (TEXT_FLAGS if len(tokens) == len(files) else ())
    changed = [name for name in names if getattr(arguments, name) != getattr(PreprocessArguments, name)]
    if tokens:
        raise_problems(
            f"--{name}: {tokens[0]} has token ids, which are packed as they are; remove the flag, or pass the text"
            for name in changed
        )


def flat_file_lines(files: Sequence[InputFile], origin: StoreSpec) -> Iterator[str]:
    """How .bin files without an index are read."""
    for file in files:
        if file.format == "tokens":
            line = reading_of_flat_file(Path(file.location), origin.token_rules.eos_token_id)
            yield from () if line is None else (line,)


def check_skipped(
    slices: Sequence[SliceProgress], origin: StoreSpec, max_skipped_fraction: float, advice: str = ""
) -> None:
    """Reject input with too many unreadable lines; blank lines and removed documents do not count."""
    counts = sum((Counter(made.skipped_lines) for made in slices), Counter())
    num_unreadable = sum(count for reason, count in counts.items() if reason not in CLEANED)
    num_lines = sum(made.num_documents for made in slices) + num_unreadable
    if num_unreadable > max_skipped_fraction * num_lines:
        counted = f"{num_unreadable:,} of {num_lines:,} lines are unreadable"
        remedy = _remedy(slices, max_skipped_fraction)
        raise UserError(f"{_first_unreadable(slices, origin.text_field)}; {counted}, {remedy}{advice}")


def _remedy(slices: Sequence[SliceProgress], max_skipped_fraction: float) -> str:
    """What to do about the first unreadable line; allowing more is of use only where there are documents."""
    first = _first_of(slices)
    reason = None if first is None else first["reason"]
    steps = ["fix them", *([REMEDIES[reason]] if reason in REMEDIES else [])]
    if any(made.num_documents for made in slices):
        steps.append("allow more")
    steps[1:] = [f"or {step}" if step is steps[-1] else step for step in steps[1:]]
    return f"more than --max_skipped_fraction {max_skipped_fraction}; {', '.join(steps)}"


@dataclass
class EarlyCheck:
    """Aborts a run that finds no document: terabytes of another format, or a decompression bomb.

    `num_lines` and `num_bytes` have been read since the last document.
    """

    origin: StoreSpec
    max_skipped_fraction: float
    num_lines: int = 0
    num_bytes: int = 0

    def see(self, batch: EncodedBatch, made: SliceProgress) -> None:
        """Count a batch that was added to its slice.

        Raises:
            NoDocumentError: when too many consecutive lines are not documents; blank lines count, removed documents do
                not.
        """
        if len(batch.lengths):
            self.num_lines = self.num_bytes = 0
            return
        self.num_lines += sum(line.num_lines for line in batch.skipped if line.reason not in REMOVED)
        self.num_bytes += batch.num_bytes
        begins_badly = made.num_documents == 0 and self.num_bytes > ENOUGH_BYTES
        if not begins_badly and self.num_lines <= ENOUGH_LINES:
            return
        num_bad = sum(count for reason, count in made.skipped_lines.items() if reason not in REMOVED)
        num_lines = made.num_documents + sum(made.skipped_lines.values())
        if num_bad > self.max_skipped_fraction * num_lines:
            counted = f"{num_bad:,} of {num_lines:,} lines so far are not documents"
            raise NoDocumentError(
                f"--data_files {batch.path}: no document in {self.num_lines:,} consecutive lines; "
                f"{_first_unreadable([made], self.origin.text_field)}; {counted}, "
                f"{_remedy([made], self.max_skipped_fraction)}"
            )


def _first_of(slices: Sequence[SliceProgress]) -> dict[str, Any] | None:
    return next((made.first_unreadable for made in slices if made.first_unreadable), None)


def _first_unreadable(slices: Sequence[SliceProgress], text_field: str) -> str:
    first = _first_of(slices)
    if first is None:
        return "they are blank"
    place, shown, reason = f"{first['file']}:{first['line']}", first["first_bytes"], first["reason"]
    if reason == "no_text_field":
        names = fields_shown(shown)
        found = shown if shown.startswith("the columns are ") else f"the fields are: {', '.join(names)}"
        escaped = repr(found)[1:-1]  # a name of a column can have control characters
        return f"{place}: no field {text_field}; {escaped if names or found is shown else repr(shown)}"
    return f"{place}: {reason.replace('_', ' ')} ({shown!r})"


def fields_shown(beginning: str) -> list[str]:
    """The names of the fields of a JSON object, as far as its `beginning` shows them, then `...` for those after it.

    >>> fields_shown('{"id": 7, "meta": {"text": 1}, "content": "It is a trut')
    ['id', 'meta', 'content', '...']
    """
    names: list[str] = []
    place = 0
    while found := NAME_OF_FIELD.match(beginning, place):
        names.append(found[1])
        try:
            _, place = json.JSONDecoder().raw_decode(beginning, found.end())
        except (ValueError, RecursionError):
            return [*names, "..."]
    return names if beginning[place:].strip() == "}" or not names else [*names, "..."]


def empty_store_reason(slices: Sequence[SliceProgress], origin: StoreSpec) -> str | None:
    """Why the slices give no block; None if they do."""
    if not any(made.num_documents for made in slices):
        counts = sum((Counter(made.skipped_lines) for made in slices), Counter())
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items()) or "no line"
        return f"--data_files: no document is left ({reasons}); use other files or flags"
    max_tokens = max(sum(made.splits[split].num_tokens for made in slices) for split in SPLITS)
    if origin.packing == "concat" and max_tokens < origin.block_length:
        return (
            f"--block_length {origin.block_length}: no split has the tokens of one block, the largest has "
            f"{max_tokens:,}; use a smaller value, or more text"
        )
    return None


@contextlib.contextmanager
def with_resume_hint(output_dir: Path) -> Iterator[None]:
    """Turn a full disk or a permission error into one line; finished shards are kept."""
    folder = partial_dir(output_dir)
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        place = f"--output_dir {output_dir}: cannot be written"
        if error.filename is not None and not Path(error.filename).resolve().is_relative_to(folder.parent):
            place = f"{error.filename}: cannot be used"
        raise UserError(f"{place} ({reason}); fix that, then {_resume_hint(folder)}") from None
    except KeyboardInterrupt:
        logger.warning("stopped; %s", _resume_hint(folder))
        raise


def _resume_hint(folder: Path) -> str:
    if folder.exists():
        return f"run the same command again to resume from the last finished shard in {folder}"
    return "run the same command again (nothing was finished yet)"
