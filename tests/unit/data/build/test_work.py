"""How a slice is written, without the programs that do it; tests/programs has the rest."""

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build import slice_writer
from pretraining.data.build.origin import build_store_spec, sources_before_hashing
from pretraining.data.build.work import Work, make_slice
from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.filters import TextFilter
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import RawBatch
from pretraining.data.input.slices import cut_slices
from pretraining.data.store import packing
from pretraining.data.store.blocks import Blocks
from pretraining.data.store.shards import block_table
from pretraining.data.tokenize.backends import BackendDiffersError
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from tests.conftest import PROJECT_DIR


class NoMeter:
    """Counts nothing."""

    def skip(self, num_bytes: int, num_documents: int) -> None: ...

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None: ...


def work_on(data: Path, split: str) -> tuple[Work, BatchEncoder]:
    """The only slice of a file."""
    arguments = PreprocessArguments(data_files=[str(data)], output_dir=data.parent / "blocks", split=split)
    files = list(find_inputs([str(data)]))
    tokenizer = load_document_tokenizer(str(PROJECT_DIR / "data/sample/tokenizer"), add_bos=False)
    origin = build_store_spec(arguments, tokenizer, sources_before_hashing(files))
    reader = DocumentReader(origin.reading_options, TextFilter(origin.cleaning))
    work = Work(data.parent, files, cut_slices(files, 1), origin, tokenizer, reader, 1, 0.0)
    return work, BatchEncoder(reader, SplitAssigner(origin.split_weights, seed=0), tokenizer)


def test_the_last_blocks_of_all_splits_are_written_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("".join('{"text": "%s"}\n' % (f"number {n} " * 200) for n in range(200)))
    both = threading.Barrier(2)

    def meet(batches: Sequence[Blocks], schema: pa.Schema) -> pa.Table:
        both.wait(30)  # an error if the other does not come
        return block_table(batches, schema)

    monkeypatch.setattr(slice_writer, "block_table", meet)
    work, encoder = work_on(data, "1,1,0")
    make_slice(work, encoder, 0, NoMeter())
    made = work.progress_of(0)
    assert made is not None
    assert made.is_done
    assert [len(made.splits[split].shards) for split in ("train", "validation", "test")] == [1, 1, 0]


def test_threads_end_with_a_slice_that_the_reference_must_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups of it would be written into the files that the reference begins."""
    data = tmp_path / "a.jsonl"
    data.write_text("".join('{"text": "%s"}\n' % (f"number {n} " * 2000) for n in range(400)))
    for module in (slice_writer, packing):
        monkeypatch.setattr(module, "TOKENS_PER_ROW_GROUP", 1 << 14)
    monkeypatch.setattr(slice_writer, "block_table", lambda *what: (time.sleep(0.2), block_table(*what))[1])
    work, encoder = work_on(data, "1,0,0")
    batches = itertools.count()

    def encode(batch: RawBatch) -> EncodedBatch:
        if next(batches) == 2:
            raise BackendDiffersError("other ids")
        return encoder.encode(batch)

    make_slice(work, SimpleNamespace(encode=encode), 0, NoMeter())  # type: ignore[arg-type]
    assert work.fast_backend_was_wrong
    assert not [each.name for each in threading.enumerate() if each.name.startswith(("compress", "write"))]
