"""Assemble a block store: shards under final names, the last blocks, card, and manifest.json.

Every step can be repeated, so the same command resumes an interrupted assembly.
"""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pretraining.data.build.card import CARD_NAME, write_card
from pretraining.data.build.partial_store import (
    LAST_BLOCKS_DIR,
    LOCK_NAME,
    WORKING_DIRS,
    WORKING_FILES,
    PartialStore,
    slice_dir,
)
from pretraining.data.build.progress import SliceProgress, SplitProgress
from pretraining.data.build.slice_writer import SplitWriter, packer_of, read_carried
from pretraining.data.encode.splits import SPLITS, Split
from pretraining.data.store.integrity import wrong_hashes
from pretraining.data.store.manifest import Manifest, SplitContents, StoreSpec, read_manifest
from pretraining.data.store.shards import DOCUMENTS_PREFIX, Shard, ShardThreads, block_schema, shard_path
from pretraining.data.tokenize.reference import TOKENIZER_FILES
from pretraining.system.files import TEMPORARY_SUFFIX, fsync

logger = logging.getLogger(__name__)

SKIPPED_NAME = "skipped.jsonl"
LocatedShard = tuple[Path, Shard]  # and the folder that it was written into


def publish(store: PartialStore) -> Manifest:
    """Remove the working files, and rename the assembled store to its final name."""
    manifest = read_manifest(store.folder, flag="--output_dir")
    for name in WORKING_DIRS:
        if (store.folder / name).exists():
            shutil.rmtree(store.folder / name)
    for name in (*WORKING_FILES, LOCK_NAME):
        (store.folder / name).unlink(missing_ok=True)
    for path in store.folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()
    store.folder.replace(store.output_dir)
    fsync(store.output_dir.parent)
    return manifest


def assemble(folder: Path, origin: StoreSpec, slices: Sequence[SliceProgress], *, tokenizer_dir: Path) -> None:
    """Assemble the finished slices in `folder`, check the sums, and write the manifest last."""
    made = {slice_dir(folder, number): progress for number, progress in enumerate(slices)}
    shards = _shards_by_prefix(made)
    manifest = build_manifest(
        folder,
        origin,
        {split: _assemble_split(folder, made, origin, split, shards[f"data/{split}"]) for split in SPLITS},
        shards[DOCUMENTS_PREFIX],
        sum((Counter(progress.skipped_lines) for progress in slices), Counter()),
        num_documents=sum(progress.num_documents for progress in slices),
    )
    with (folder / SKIPPED_NAME).open("wb") as skipped:
        for path in (place / name for place, progress in made.items() for name in progress.skipped_files):
            with path.open("rb") as part:
                shutil.copyfileobj(part, skipped)
    copy_tokenizer(tokenizer_dir, folder / "tokenizer")
    write_card(manifest, folder)
    fsync(folder / CARD_NAME)
    finish_store(folder, manifest)


def _shards_by_prefix(made: Mapping[Path, SliceProgress]) -> dict[str, list[LocatedShard]]:
    """The shards of slices, by the prefix of their final paths."""
    blocks = {
        f"data/{split}": [(place, shard) for place, progress in made.items() for shard in progress.splits[split].shards]
        for split in SPLITS
    }
    return blocks | {DOCUMENTS_PREFIX: [(place, shard) for place, p in made.items() for shard in p.documents]}


def build_manifest(
    folder: Path,
    origin: StoreSpec,
    splits: Mapping[str, SplitContents],
    documents: Sequence[LocatedShard],
    skipped_lines: Counter[str],
    *,
    num_documents: int,
) -> Manifest:
    """Give the shards of documents their final names, and check that all counts add up.

    `num_documents` is counted as documents are read, the documents of `splits` as they are packed.

    Raises:
        ValueError: when counts do not add up.
    """
    manifest = Manifest(
        origin=origin,
        dtype=origin.dtype,
        num_lines=num_documents + skipped_lines.total(),
        num_documents=num_documents,
        skipped_lines=dict(sorted(skipped_lines.items())),
        splits=dict(splits),
        documents=name_shards(folder, DOCUMENTS_PREFIX, documents),
    )
    manifest.check()
    return manifest


def finish_store(folder: Path, manifest: Manifest) -> None:
    """Flush the small files to the disk, and write the manifest, which makes the store complete."""
    for path in (folder / SKIPPED_NAME, folder / "tokenizer", *(folder / "tokenizer").iterdir()):
        fsync(path)
    manifest.write(folder)


def split_contents(
    folder: Path,
    split: Split,
    parts: Sequence[SplitProgress],
    shards: Sequence[LocatedShard],
    *,
    num_tail_tokens: int = 0,
) -> SplitContents:
    """Give the shards of blocks their final names, and add up the counts of the parts of a split."""
    return SplitContents(
        num_documents=sum(part.num_documents for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_blocks=sum(part.num_blocks for part in parts),
        num_padding_tokens=sum(part.num_padding_tokens for part in parts),
        num_tail_tokens=num_tail_tokens,
        shards=name_shards(folder, f"data/{split}", shards),
    )


def _assemble_split(
    folder: Path, made: Mapping[Path, SliceProgress], origin: StoreSpec, split: Split, shards: Sequence[LocatedShard]
) -> SplitContents:
    """Pack the tokens that the slices have left over, and give all shards of the split their final names."""
    last_dir = folder / LAST_BLOCKS_DIR
    last_dir.mkdir(exist_ok=True)
    last, packer = SplitProgress(), packer_of(origin)
    with contextlib.closing(ShardThreads()) as threads:
        writer = SplitWriter(last_dir, split, 0, packer, block_schema(origin.block_length, origin.dtype), threads)
        for place, progress in made.items():
            if progress.carried_file is not None:
                writer.add_blocks(packer.add(read_carried(place / progress.carried_file)[split]), last)
        writer.add_blocks(packer.flush(), last)
        writer.close(last)
    parts = [*(progress.splits[split] for progress in made.values()), last]
    all_shards = [*shards, *((last_dir, shard) for shard in last.shards)]
    return split_contents(folder, split, parts, all_shards, num_tail_tokens=packer.pending.num_tokens)


def forget_damaged_slices(folder: Path, slices: Sequence[SliceProgress | None]) -> None:
    """Remove each slice that has a damaged finished file: reads 1.5 GB/s per core."""
    made = {slice_dir(folder, number): progress for number, progress in enumerate(slices) if progress is not None}
    if len(made) == len(slices):
        _take_back_shards(folder, made)
    expected = {place / name: digest for place, progress in made.items() for name, digest in progress.hashes().items()}
    for file, found in list(wrong_hashes(expected, "checking finished files")):
        logger.warning("%s: has the SHA-256 %s, not %s; writing its slice again", file, found, expected[file])
        shutil.rmtree(file.parent, ignore_errors=True)


def _take_back_shards(folder: Path, made: Mapping[Path, SliceProgress]) -> None:
    """Move shards that an interrupted assembly has renamed back into the folders of their slices."""
    for prefix, shards in _shards_by_prefix(made).items():
        named = {path.name.partition("-of-")[0]: path for path in (folder / prefix).parent.glob("*-of-*.parquet")}
        for number, (place, shard) in enumerate(shards):
            path = named.get(f"{Path(prefix).name}-{number:05d}")
            if path is not None and not (place / shard.path).exists():
                path.replace(place / shard.path)


def name_shards(folder: Path, prefix: str, shards: Sequence[LocatedShard]) -> list[Shard]:
    """Give shards their final names; an interrupted assembly may have moved some already."""
    (folder / prefix).parent.mkdir(exist_ok=True)
    named = []
    for number, (source_dir, shard) in enumerate(shards):
        final = replace(shard, path=shard_path(prefix, number, len(shards)))
        if (source_dir / shard.path).exists():
            (source_dir / shard.path).replace(folder / final.path)
        named.append(final)
    fsync((folder / prefix).parent)
    return named


def copy_tokenizer(tokenizer_dir: Path, target: Path) -> None:
    """Copy the files of a tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            (target / name).write_bytes((tokenizer_dir / name).read_bytes())
