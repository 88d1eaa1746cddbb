"""Build a block store from input files, slice by slice, in one process or several."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.progress import Progress
from pretraining.data.build.assemble import assemble, forget_damaged_slices, publish
from pretraining.data.build.checks import (
    NoDocumentError,
    check_skipped,
    empty_store_reason,
    flat_file_lines,
    with_resume_hint,
)
from pretraining.data.build.origin import Hashes, build_store_spec, source_files
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
from pretraining.data.build.processes import Task, make_each, num_worker_processes
from pretraining.data.build.ranks import Ranks
from pretraining.data.build.work import SliceMeter, Work, make_keys, make_slice
from pretraining.data.encode.deduplicate import Duplicates, KeyExtractor, write_duplicates
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader, no_original
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import TextFilter
from pretraining.data.input.slices import num_bytes_of
from pretraining.data.store.integrity import check_hashes
from pretraining.data.store.manifest import Manifest, StoreSpec, read_manifest
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError

logger = logging.getLogger(__name__)


def make_block_store(
    arguments: PreprocessArguments,
    files: Sequence[InputFile],
    tokenizer: DocumentTokenizer,
    ranks: Ranks,
    hashes: "Future[Hashes]",
) -> Manifest:
    """Read, filter, encode, split, pack and write every document; resume an interrupted run.

    `hashes`: of the input, in the first process.

    Raises:
        UserError: when the folder is in use or belongs to other input or flags, an input file is damaged, too many
            lines are unreadable, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(with_resume_hint(arguments.output_dir))
        store = stack.enter_context(PartialStore(arguments.output_dir)) if ranks.is_first else None
        origin, manifest = ranks.from_first(lambda: _begin(store, arguments, files, tokenizer, hashes))
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
    num_bytes = sum(num_bytes_of(work.files, part) for part in work.slices)
    with contextlib.closing(KeyExtractor(work.reader, work.origin.cleaning, num_bytes)) as maker:
        share_slices(work, missing, ranks, lambda part: partial(make_keys, part, maker, paths), "finding duplicates")
    ranks.wait()
    path = work.folder / DUPLICATES_NAME
    if ranks.is_first and not path.exists():
        write_duplicates(path, paths, work.origin.cleaning)
    ranks.wait()
    return Duplicates(path, [file.path for file in work.files])


def make_slices(work: Work, duplicates: Duplicates | None, ranks: Ranks) -> None:
    """Write every slice that is not finished, or has a damaged file; the processes share them."""
    earlier = [work.progress_of(number) for number in range(len(work.slices))]
    ranks.from_first(lambda: forget_damaged_slices(work.folder, earlier))  # at the start: what is written now is hashed
    splits = SplitAssigner(work.origin.split_weights, seed=work.origin.seed)
    original_of = no_original if duplicates is None else duplicates.original_of
    encoder = BatchEncoder(work.reader, splits, work.tokenizer, original_of)
    while numbers := ranks.from_first(lambda: _unfinished_slices(work)):
        if work.fast_backend_was_wrong:
            work.tokenizer.use_reference()
        share_slices(work, numbers, ranks, lambda part: partial(make_slice, part, encoder))
        ranks.wait()


def share_slices(
    work: Work, numbers: Sequence[int], ranks: Ranks, task_of: Callable[[Work], Task], activity: str | None = None
) -> None:
    """Do the task on this rank's part of the slices, in several processes if it is the only rank."""
    mine = numbers[ranks.rank :: ranks.size]
    num_bytes = sum(num_bytes_of(work.files, work.slices[number]) for number in mine)
    num_own = num_worker_processes(len(mine), num_bytes, work.num_workers) if ranks.size == 1 else 1
    with Progress(num_bytes) as progress:
        make_each(task_of(work.shared_by(num_own)), mine, SliceMeter(progress, activity), num_own)


def _begin(
    store: PartialStore | None,
    arguments: PreprocessArguments,
    files: Sequence[InputFile],
    tokenizer: DocumentTokenizer,
    hashes: "Future[Hashes]",
) -> tuple[StoreSpec, Manifest | None]:
    """Open the store for this origin; its manifest as well, if only publishing is left."""
    store = _opened(store)
    origin = build_store_spec(arguments, files, tokenizer, hashes, hashes_in=store.folder / INPUT_HASHES_NAME)
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
    """Slices to write; those that a wrong fast backend wrote are written again."""
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
