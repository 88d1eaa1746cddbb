"""Build a block store from input files, slice by slice, in one process or several."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.progress import Progress
from pretraining.data.build.assemble import assemble, forget_damaged_slices, publish
from pretraining.data.build.checks import (
    EarlyCheck,
    NoDocumentError,
    check_skipped,
    empty_store_reason,
    flat_file_lines,
    with_resume_hint,
)
from pretraining.data.build.origin import build_store_spec, source_files
from pretraining.data.build.partial_store import (
    DUPLICATES_NAME,
    INPUT_HASHES_NAME,
    KEYS_DIR,
    NO_DOCUMENT_NAME,
    REFERENCE_ONLY_NAME,
    PartialStore,
    partial_dir,
    slice_dir,
)
from pretraining.data.build.prepared_batch import PreparedBatch, prepare
from pretraining.data.build.progress import SliceProgress, read_progress
from pretraining.data.build.ranks import Ranks
from pretraining.data.build.slice_writer import SliceWriter
from pretraining.data.encode.deduplicate import Duplicates, KeyExtractor, write_duplicates, write_keys
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader, no_original, ordered_parallel_map
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import TextFilter
from pretraining.data.input.reading import RawBatch, read_batches
from pretraining.data.input.slices import FileRange, num_bytes_of
from pretraining.data.store.integrity import check_hashes
from pretraining.data.store.manifest import Manifest, StoreSpec, read_manifest
from pretraining.data.tokenize.backends import BackendDiffersError
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Everything needed to write any slice of the partial store in `folder`."""

    folder: Path
    files: Sequence[InputFile]
    slices: Sequence[Sequence[FileRange]]
    origin: StoreSpec
    tokenizer: DocumentTokenizer
    reader: DocumentReader
    num_workers: int
    max_skipped_fraction: float

    @property
    def fast_backend_was_wrong(self) -> bool:
        """Whether any process, also of an earlier run, found a document that the fast backend encodes wrong."""
        return (self.folder / REFERENCE_ONLY_NAME).exists()

    def progress_of(self, number: int) -> SliceProgress | None:
        """The progress of slice `number`."""
        return read_progress(slice_dir(self.folder, number))

    def started_slices(self) -> list[SliceProgress]:
        """The progress of the slices that have any."""
        return [made for number in range(len(self.slices)) if (made := self.progress_of(number)) is not None]


def make_block_store(
    arguments: PreprocessArguments, files: Sequence[InputFile], tokenizer: DocumentTokenizer, ranks: Ranks
) -> Manifest:
    """Read, filter, encode, split, pack and write every document; resume an interrupted run.

    Raises:
        UserError: when the folder is in use or belongs to other input or flags, an input file is damaged, too many
            lines are unreadable, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(with_resume_hint(arguments.output_dir))
        store = stack.enter_context(PartialStore(arguments.output_dir)) if ranks.is_first else None
        origin, manifest = ranks.from_first(lambda: _begin(store, arguments, files, tokenizer))
        if manifest is not None:
            return manifest
        work = Work(
            folder=partial_dir(arguments.output_dir),
            files=files,
            slices=ranks.from_first(lambda: _opened(store).slices(files, origin.num_slices)),
            origin=origin,
            tokenizer=tokenizer,
            reader=DocumentReader(origin.reading_options, TextFilter(origin.cleaning)),
            num_workers=arguments.num_workers,
            max_skipped_fraction=arguments.max_skipped_fraction,
        )
        rules = origin.cleaning
        finds_duplicates = rules.exact_duplicates or rules.near_duplicates is not None
        duplicates = find_duplicates(work, ranks) if finds_duplicates else None
        try:
            make_slices(work, duplicates, ranks)
        except NoDocumentError:
            (work.folder / NO_DOCUMENT_NAME).touch()  # mpirun kills the first process, which then discards nothing
            if store is not None and not any(made.num_documents for made in work.started_slices()):
                store.discard()  # otherwise it would reject the right --text_field
            raise
        return ranks.from_first(lambda: _finish(_opened(store), work))


def find_duplicates(work: Work, ranks: Ranks) -> Duplicates:
    """Find duplicates in a first pass over the input."""
    paths = [work.folder / KEYS_DIR / f"{number:05d}.npz" for number in range(len(work.slices))]
    missing = ranks.from_first(lambda: [number for number, path in enumerate(paths) if not path.exists()])
    maker = KeyExtractor(work.reader, work.origin.cleaning)
    mine = missing[ranks.rank :: ranks.size]
    with Progress(sum(num_bytes_of(work.files, work.slices[number]) for number in mine)) as progress:
        for number in mine:
            batches = read_batches(work.files, work.slices[number], None, work.origin.reading_options)
            for num_bytes in write_keys(paths[number], maker, batches, num_workers=work.num_workers):
                progress.advance(num_bytes, "finding duplicates")
    ranks.wait()
    path = work.folder / DUPLICATES_NAME
    if ranks.is_first and not path.exists():
        write_duplicates(path, paths, work.origin.cleaning)
    ranks.wait()
    return Duplicates(path, [file.path for file in work.files])


def make_slices(work: Work, duplicates: Duplicates | None, ranks: Ranks) -> None:
    """Write every slice that is not finished; the processes share them."""
    splits = SplitAssigner(work.origin.split_weights, seed=work.origin.seed)
    original_of = no_original if duplicates is None else duplicates.original_of
    encoder = BatchEncoder(work.reader, splits, work.tokenizer, original_of)
    while numbers := ranks.from_first(lambda: _unfinished_slices(work)):
        if work.fast_backend_was_wrong:
            work.tokenizer.use_reference()
        mine = numbers[ranks.rank :: ranks.size]
        with Progress(sum(num_bytes_of(work.files, work.slices[number]) for number in mine)) as progress:
            for number in mine:
                make_slice(work, encoder, number, progress)
        ranks.wait()


def make_slice(work: Work, encoder: BatchEncoder, number: int, progress: Progress) -> None:
    """Write one slice from its last finished section on."""
    if work.fast_backend_was_wrong and work.tokenizer.backend_name != "reference":
        return  # the reference writes it, in the next round
    writer = SliceWriter(
        slice_dir(work.folder, number),
        work.origin,
        slice_number=number,
        only_reference=work.tokenizer.backend_name == "reference",
    )
    made = writer.progress
    progress.skip(made.num_file_bytes)
    batches = read_batches(work.files, work.slices[number], made.position, work.origin.reading_options)
    num_tokens_before = made.num_tokens
    early_check = EarlyCheck(work.origin, work.max_skipped_fraction)

    def encode(batch: RawBatch) -> PreparedBatch:
        return prepare(encoder.encode(batch))

    try:
        for prepared in ordered_parallel_map(encode, batches, num_workers=work.num_workers):
            writer.add(prepared)
            early_check.see(prepared.batch, made)
            speed = (made.num_tokens - num_tokens_before) / progress.elapsed_seconds
            progress.advance(prepared.batch.num_file_bytes, f"{made.num_documents:,} documents, {speed:,.0f} tokens/s")
    except BackendDiffersError as error:
        (work.folder / REFERENCE_ONLY_NAME).write_text(str(error), encoding="utf-8")
    else:
        writer.finish()


def _begin(
    store: PartialStore | None, arguments: PreprocessArguments, files: Sequence[InputFile], tokenizer: DocumentTokenizer
) -> tuple[StoreSpec, Manifest | None]:
    """Open the store for this origin; its manifest as well, if only publishing is left."""
    store = _opened(store)
    origin = build_store_spec(arguments, files, tokenizer, hashes_in=store.folder / INPUT_HASHES_NAME)
    if store.claim(origin):
        logger.info("resuming from %s", store.folder)
    for line in flat_file_lines(files, origin):
        logger.info(line)
    if not store.is_assembled:
        return origin, None
    check_hashes(store.folder, read_manifest(store.folder, flag="--output_dir"), flag="--output_dir")
    return origin, publish(store)


def _opened(store: PartialStore | None) -> PartialStore:
    assert store is not None, "only the first process has the store open"
    return store


def _unfinished_slices(work: Work) -> list[int]:
    """Slices to write; those that a wrong fast backend wrote, or that have a damaged file, are written again."""
    forget_damaged_slices(work.folder, [work.progress_of(number) for number in range(len(work.slices))])
    if work.fast_backend_was_wrong and work.tokenizer.backend_name != "reference":
        difference = (work.folder / REFERENCE_ONLY_NAME).read_text(encoding="utf-8", errors="backslashreplace")
        logger.warning("%s; encoding everything again with the reference", difference)
    unfinished = []
    for number in range(len(work.slices)):
        made = work.progress_of(number)
        if made is not None and work.fast_backend_was_wrong and not made.only_reference:
            shutil.rmtree(slice_dir(work.folder, number))
            made = None
        if made is None or not made.is_done:
            unfinished.append(number)
    return unfinished


def _finish(store: PartialStore, work: Work) -> Manifest:
    slices = work.started_slices()
    sources = source_files(work.files, hashes_in=store.folder / INPUT_HASHES_NAME)
    for then, now in zip(work.origin.sources, sources, strict=True):
        if then.sha256 != now.sha256:
            raise UserError(f"--data_files {now.path}: changed during reading; delete {work.folder} and start again")
    if not any(made.num_documents for made in slices):  # it would reject the right --text_field
        store.discard()
        check_skipped(slices, work.origin, work.max_skipped_fraction)
    check_skipped(
        slices, work.origin, work.max_skipped_fraction, f"; after fixing the input, delete {work.folder} first"
    )
    problem = empty_store_reason(slices, work.origin)
    if problem is not None:
        store.discard()
        raise UserError(problem)
    assemble(store.folder, work.origin, slices, tokenizer_dir=work.tokenizer.folder)
    return publish(store)
