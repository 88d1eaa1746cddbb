"""What ends a run of preprocess.py: too many unreadable lines, not one block, a disk that cannot be written."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.cli.errors import UserError
from pretraining.corpus.block_store import partial_dir
from pretraining.corpus.documents import CLEANED
from pretraining.corpus.manifest import Origin
from pretraining.corpus.progress import SliceProgress
from pretraining.corpus.splits import SPLITS

logger = logging.getLogger(__name__)


def check_skipped(slices: Sequence[SliceProgress], max_skipped_fraction: float, advice: str = "") -> None:
    """Refuse input of which too much cannot be read; blank lines and what cleaning removes do not count."""
    counts = sum((Counter(made.skipped_lines) for made in slices), Counter())
    num_unreadable = sum(count for reason, count in counts.items() if reason not in CLEANED)
    num_lines = sum(made.num_documents for made in slices) + num_unreadable
    first = next((made.first_unreadable for made in slices if made.first_unreadable), None)
    if first is not None and num_unreadable > max_skipped_fraction * num_lines:
        raise UserError(
            f"{first['file']}:{first['line']}: {first['reason'].replace('_', ' ')} ({first['first_bytes']!r}); "
            f"{num_unreadable:,} of {num_lines:,} lines like it are more than --max_skipped_fraction "
            f"{max_skipped_fraction}; mend them, name the right --text_field, or allow more{advice}"
        )


def why_no_block(slices: Sequence[SliceProgress], origin: Origin) -> str | None:
    """Why the slices make no block store, None when they make one."""
    if not any(made.num_documents for made in slices):
        counts = sum((Counter(made.skipped_lines) for made in slices), Counter())
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items()) or "no line"
        return f"--data_files: no line of them is a document that is kept ({reasons}); give others, or other flags"
    most_tokens = max(sum(made.splits[split].num_tokens for made in slices) for split in SPLITS)
    if origin.packing == "concat" and most_tokens < origin.block_length:
        return (
            f"--block_length {origin.block_length}: no split has the tokens of one block, the largest has "
            f"{most_tokens:,}; give a smaller one, or more text"
        )
    return None


@contextlib.contextmanager
def saying_how_to_go_on(output_dir: Path) -> Iterator[None]:
    """Turn a full disk or a withdrawn permission into one line; nothing that was finished is lost."""
    folder = partial_dir(output_dir)
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        place = f"--output_dir {output_dir}: cannot be written"
        if error.filename is not None and not Path(error.filename).resolve().is_relative_to(folder.parent):
            place = f"{error.filename}: cannot be used"
        raise UserError(f"{place} ({reason}); mend that, and {_how_to_go_on(folder)}") from None
    except KeyboardInterrupt:
        logger.warning("stopped; %s", _how_to_go_on(folder))
        raise


def _how_to_go_on(folder: Path) -> str:
    if folder.exists():
        return f"the same command goes on from the last finished shard in {folder}"
    return "give the same command again (nothing was finished yet)"
