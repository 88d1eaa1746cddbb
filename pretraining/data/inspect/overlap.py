"""How much of each of some texts stands in training documents, and where its longest run of tokens does.

Every token of the split is read once. A document that is cut by the end of a block is put together again at the cut, so
that a run is found as a whole wherever blocks end.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.encode.splits import Split
from pretraining.data.inspect.ngram_index import CommonRuns, NgramIndex, Segments
from pretraining.data.inspect.provenance import BlockProvenance, PieceTable
from pretraining.data.inspect.text_search import RowGroup, row_groups


@dataclass(frozen=True, slots=True)
class VerbatimSpan:
    """`num_tokens` tokens from `start` of a text on, which stand in a document from its token `document_token` on."""

    start: int
    num_tokens: int
    document_id: int
    document_token: int


@dataclass(frozen=True, slots=True)
class CopiedText:
    """How many tokens of a text stand in documents in runs of 8 or more, and the longest of these, or one of them."""

    num_tokens: int
    longest: VerbatimSpan | None


@dataclass(frozen=True, slots=True)
class _Group:
    """The blocks of a row group: their ids, their pieces, and the runs within these."""

    ids: np.ndarray
    pieces: PieceTable
    runs: CommonRuns


@dataclass(frozen=True, slots=True)
class _Cut:
    """The tokens on both sides of a cut through a document, and the number of the first of them in it."""

    ids: np.ndarray
    document_id: int
    offset: int


def find_copied_runs(
    tracer: BlockProvenance, texts: Sequence[Sequence[int]], *, split: Split, progress: Progress, num_workers: int
) -> list[CopiedText]:
    """What is copied of each text.

    Raises:
        UserError: when a shard is missing or damaged.
    """
    index = NgramIndex(texts)
    found: list[VerbatimSpan | None] = [None] * len(texts)
    if index.is_empty:
        return [CopiedText(0, None) for _ in texts]
    is_common = np.zeros(index.num_places, bool)
    cuts = _Cuts(index.longest, tracer.manifest.origin.token_rules.eos_token_id)
    for group, searched in _search(tracer, index, split, num_workers):
        owners = np.searchsorted(searched.pieces.begins, searched.runs.places, side="right") - 1
        offsets = searched.pieces.offsets - searched.pieces.begins
        _keep_longest(found, searched.runs, searched.pieces.document_ids[owners], offsets[owners])
        is_common |= searched.runs.is_common
        joined = list(cuts.join(searched))
        if joined:
            runs, document_ids, offsets = _runs_over_cuts(index, joined)
            _keep_longest(found, runs, document_ids, offsets)
            is_common |= runs.is_common
        progress.advance(group.num_bytes, f"{sum(run is not None for run in found):,} texts with a copied run")
    return [CopiedText(*both) for both in zip(index.counts(is_common), found, strict=True)]


def _keep_longest(
    found: list[VerbatimSpan | None], runs: CommonRuns, document_ids: np.ndarray, offsets: np.ndarray
) -> None:
    """Put `runs` where they are longer; of each the document, and what is between its place and its token there."""
    rows = zip(runs.texts, runs.starts, runs.lengths, document_ids, runs.places + offsets, strict=True)
    for text, start, length, document_id, token in rows:
        earlier = found[text]
        if earlier is None or length > earlier.num_tokens:
            found[text] = VerbatimSpan(int(start), int(length), int(document_id), int(token))


def _search(
    tracer: BlockProvenance, index: NgramIndex, split: Split, num_workers: int
) -> Iterator[tuple[RowGroup, _Group]]:
    """The row groups of a split in order, each searched by one of the threads."""
    block_length = tracer.manifest.origin.block_length

    def searched(group: RowGroup) -> _Group:
        rows = tracer.open_shard(group.shard).read_row_group(group.number, use_threads=False)
        ids = np.from_dlpack(rows["input_ids"].combine_chunks().flatten())
        pieces = PieceTable(rows, split=split, first_block=group.first_block, block_length=block_length)
        return _Group(ids, pieces, index.longest_runs(Segments(ids, pieces.begins, pieces.ends)))

    groups = row_groups(tracer, split)
    with ThreadPoolExecutor(num_workers) as executor:

        def submit(some: Iterable[RowGroup]) -> list[tuple[RowGroup, Future[_Group]]]:
            return [(group, executor.submit(searched, group)) for group in some]

        under_way = deque(submit(islice(groups, num_workers + 1)))
        while under_way:
            group, future = under_way.popleft()
            yield group, future.result()
            under_way.extend(submit(islice(groups, 1)))


class _Cuts:
    """Remembers of each document that goes on in a later block its last tokens, as many as a run can begin in."""

    def __init__(self, longest: int, eos_token_id: int) -> None:
        self._reach = longest - 1
        self._eos_token_id = eos_token_id
        self._ends: dict[int, np.ndarray] = {}

    def join(self, group: _Group) -> Iterator[_Cut]:
        """What stands on both sides of each cut that ends in this group."""
        pieces = group.pieces
        is_cut = group.ids[pieces.ends - 1] != self._eos_token_id
        for number in np.flatnonzero(is_cut | (pieces.offsets > 0)).tolist():
            document_id, offset = int(pieces.document_ids[number]), int(pieces.offsets[number])
            begin, end = int(pieces.begins[number]), int(pieces.ends[number])
            before = self._ends.pop(document_id, group.ids[:0])
            if len(before):
                head = group.ids[begin : min(end, begin + self._reach)]
                yield _Cut(np.concatenate([before, head]), document_id, offset - len(before))
            if is_cut[number]:
                last = group.ids[max(begin, end - self._reach) : end]
                self._ends[document_id] = np.concatenate([before, last])[-self._reach :]


def _runs_over_cuts(index: NgramIndex, cuts: Sequence[_Cut]) -> tuple[CommonRuns, np.ndarray, np.ndarray]:
    """The runs over `cuts`, and of each the document and what is between its place and its token there."""
    lengths = np.array([len(cut.ids) for cut in cuts])
    ends = np.cumsum(lengths)
    begins = ends - lengths
    runs = index.longest_runs(Segments(np.concatenate([cut.ids for cut in cuts]), begins, ends))
    owners = np.searchsorted(begins, runs.places, side="right") - 1
    document_ids = np.array([cut.document_id for cut in cuts])
    offsets = np.array([cut.offset for cut in cuts]) - begins
    return runs, document_ids[owners], offsets[owners]
