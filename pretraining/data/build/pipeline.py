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
    with_resume_hint,
)
from pretraining.data.build.claim import StoreClaim
from pretraining.data.build.origin import build_store_spec, source_files
from pretraining.data.build.partial_store import (
    DUPLICATES_NAME,
    KEYS_DIR,
    NO_DOCUMENT_NAME,
    REFERENCE_ONLY_NAME,
    PartialStore,
    finished_store,
    is_occupied,
    slice_dir,
)
from pretraining.data.build.processes import Task, make_each, num_worker_processes
from pretraining.data.build.ranks import Ranks
from pretraining.data.build.work import Meter, SliceMeter, Work, make_keys, make_slice
from pretraining.data.build.working_files import partial_dir
from pretraining.data.encode.deduplicate import Duplicates, KeyExtractor, write_duplicates
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader, no_original
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import TextFilter
from pretraining.data.input.hashes import Hashes
from pretraining.data.input.slices import num_bytes_of
from pretraining.data.store.manifest import Manifest
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
        claim = None if store is None else StoreClaim(store, arguments, files, tokenizer, hashes)
        origin, manifest = ranks.from_first(lambda: _present(claim).begin())
        if manifest is not None:
            return manifest
        work = Work(
            folder=partial_dir(arguments.output_dir),
            files=files,
            slices=ranks.from_first(lambda: _present(claim).store.slices(files, origin.num_slices)),
            origin=origin,
            tokenizer=tokenizer,
            reader=DocumentReader(origin.reading_options, TextFilter(origin.cleaning)),
            num_workers=arguments.num_workers,
            max_skipped_fraction=arguments.max_skipped_fraction,
        )
        rules = origin.cleaning
        finds_duplicates = rules.exact_duplicates or rules.near_duplicates is not None
        advance = do_nothing if claim is None else claim.advance
        duplicates = find_duplicates(work, ranks, advance) if finds_duplicates else None
        try:
            make_slices(work, duplicates, ranks, advance)
        except NoDocumentError:
            (work.folder / NO_DOCUMENT_NAME).touch()  # mpirun kills the first process, which then discards nothing
            if store is not None and not any(made.num_documents for made in work.started_slices()):
                store.discard()  # otherwise it would reject the right --text_field
            raise
        return ranks.from_first(lambda: _finish(_present(claim), work))


def earlier_store(
    arguments: PreprocessArguments, files: Sequence[InputFile], tokenizer: DocumentTokenizer, hashes: "Future[Hashes]"
) -> Manifest | None:
    """The manifest of the store that an earlier run has finished in the output folder."""
    if not is_occupied(arguments.output_dir):
        return None
    sources = source_files(files, hashes.result(), hashes_in=None)
    return finished_store(arguments.output_dir, build_store_spec(arguments, tokenizer, sources))


def find_duplicates(work: Work, ranks: Ranks, advance: Callable[[], None]) -> Duplicates:
    """Find duplicates in a first pass over the input; `advance` is called after each batch."""
    paths = [work.folder / KEYS_DIR / f"{number:05d}.npz" for number in range(len(work.slices))]
    missing = ranks.from_first(lambda: [number for number, path in enumerate(paths) if not path.exists()])
    num_bytes = sum(num_bytes_of(work.files, part) for part in work.slices)
    with contextlib.closing(KeyExtractor(work.reader, work.origin.cleaning, num_bytes)) as maker:
        meter = partial(SliceMeter, advance=advance, activity="finding duplicates")
        share_slices(work, missing, ranks, lambda part: partial(make_keys, part, maker, paths), meter)
    ranks.wait()
    path = work.folder / DUPLICATES_NAME
    if ranks.is_first and not path.exists():
        write_duplicates(path, paths, work.origin.cleaning)
    ranks.wait()
    return Duplicates(path, [file.path for file in work.files])


def make_slices(work: Work, duplicates: Duplicates | None, ranks: Ranks, advance: Callable[[], None]) -> None:
    """Write every slice that is not finished, or has a damaged file; the processes share them."""
    earlier = [work.progress_of(number) for number in range(len(work.slices))]
    ranks.from_first(lambda: forget_damaged_slices(work.folder, earlier))  # at the start: what is written now is hashed
    splits = SplitAssigner(work.origin.split_weights, seed=work.origin.seed)
    original_of = no_original if duplicates is None else duplicates.original_of
    encoder = BatchEncoder(work.reader, splits, work.tokenizer, original_of)
    while numbers := ranks.from_first(lambda: _unfinished_slices(work)):
        if work.fast_backend_was_wrong:
            work.tokenizer.use_reference()
        meter = partial(SliceMeter, advance=advance)
        share_slices(work, numbers, ranks, lambda part: partial(make_slice, part, encoder), meter)
        ranks.wait()


def share_slices(
    work: Work,
    numbers: Sequence[int],
    ranks: Ranks,
    task_of: Callable[[Work], Task],
    make_meter: Callable[[Progress], Meter],
) -> None:
    """Do the task on this rank's part of the slices, in several processes if it is the only rank."""
    mine = numbers[ranks.rank :: ranks.size]
    num_bytes = sum(num_bytes_of(work.files, work.slices[number]) for number in mine)
    num_own = num_worker_processes(len(mine), num_bytes, work.num_workers) if ranks.size == 1 else 1
    with Progress(num_bytes) as progress:
        make_each(task_of(work.shared_by(num_own)), mine, make_meter(progress), num_own)


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


def _finish(claim: StoreClaim, work: Work) -> Manifest:
    store, slices = claim.store, work.started_slices()
    origin = claim.finish()
    if not any(made.num_documents for made in slices):  # it would reject the right --text_field
        store.discard()
        check_skipped(slices, origin, work.max_skipped_fraction)
    check_skipped(slices, origin, work.max_skipped_fraction, f"; after fixing the input, delete {work.folder} first")
    problem = empty_store_reason(slices, origin)
    if problem is not None:
        store.discard()
        raise UserError(problem)
    assemble(store.folder, origin, slices, tokenizer_dir=work.tokenizer.folder)
    return publish(store)


def do_nothing() -> None:
    """What a process without the store does after each batch."""


def _present(claim: StoreClaim | None) -> StoreClaim:
    assert claim is not None, "only the first process has the store open"
    return claim
