"""Abort conditions of preprocess.py: too many unreadable lines, no block, a disk that cannot be written."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.data.build.partial_store import partial_dir
from pretraining.data.build.progress import SliceProgress
from pretraining.data.encode.encoding import EncodedBatch
from pretraining.data.encode.splits import SPLITS
from pretraining.data.input.documents import CLEANED, REMOVED
from pretraining.data.input.reading import ENOUGH_LINES
from pretraining.data.store.manifest import StoreSpec
from pretraining.errors import UserError

logger = logging.getLogger(__name__)

ENOUGH_BYTES = 16 << 20  # without any document: most likely a wrong --text_field


def check_skipped(slices: Sequence[SliceProgress], max_skipped_fraction: float, advice: str = "") -> None:
    """Reject input with too many unreadable lines; blank lines and removed documents do not count."""
    counts = sum((Counter(made.skipped_lines) for made in slices), Counter())
    num_unreadable = sum(count for reason, count in counts.items() if reason not in CLEANED)
    num_lines = sum(made.num_documents for made in slices) + num_unreadable
    if num_unreadable > max_skipped_fraction * num_lines:
        counted = f"{num_unreadable:,} of {num_lines:,} lines are unreadable"
        raise UserError(f"{_first_unreadable(slices)}; {counted}, {_remedy(max_skipped_fraction)}{advice}")


def _remedy(max_skipped_fraction: float) -> str:
    return (
        f"more than --max_skipped_fraction {max_skipped_fraction}; fix them, use the right --text_field, or allow more"
    )


@dataclass
class EarlyCheck:
    """Aborts a run that finds no document: terabytes of another format, or a decompression bomb.

    `num_lines` and `num_bytes` have been read since the last document.
    """

    max_skipped_fraction: float
    num_lines: int = 0
    num_bytes: int = 0

    def see(self, batch: EncodedBatch, made: SliceProgress) -> None:
        """Count a batch that was added to its slice.

        Raises:
            UserError: when too many consecutive lines are not documents; blank lines count, removed documents do not.
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
            raise UserError(
                f"--data_files {batch.path}: no document in {self.num_lines:,} consecutive lines; "
                f"{_first_unreadable([made])}; {counted}, {_remedy(self.max_skipped_fraction)}"
            )


def _first_unreadable(slices: Sequence[SliceProgress]) -> str:
    first = next((made.first_unreadable for made in slices if made.first_unreadable), None)
    if first is None:
        return "they are blank"
    return f"{first['file']}:{first['line']}: {first['reason'].replace('_', ' ')} ({first['first_bytes']!r})"


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
