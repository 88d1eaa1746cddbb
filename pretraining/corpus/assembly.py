"""Make one block store of the finished slices: their shards under final names, the last blocks, the manifest, the card.

Every step can be repeated, so a run that is killed here is finished by the same command.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pretraining.corpus.block_store import (
    LAST_BLOCKS_DIR,
    LOCK_NAME,
    WORKING_DIRS,
    WORKING_FILES,
    PartialStore,
    slice_dir,
)
from pretraining.corpus.cards import CARD_NAME, write_card
from pretraining.corpus.manifest import Manifest, Origin, SplitContents, read_manifest
from pretraining.corpus.progress import SliceProgress, SplitProgress
from pretraining.corpus.shards import Shard
from pretraining.corpus.slice_writer import SplitWriter, packer_of, read_carried
from pretraining.corpus.splits import SPLITS, Split
from pretraining.corpus.tables import block_schema
from pretraining.corpus.tokenization import TOKENIZER_FILES
from pretraining.system.files import TEMPORARY_SUFFIX, sync


def give_name(store: PartialStore) -> Manifest:
    """Remove what only the making needed, and give the assembled store its name."""
    manifest = read_manifest(store.folder, flag="--output_dir")
    for name in WORKING_DIRS:
        if (store.folder / name).exists():
            shutil.rmtree(store.folder / name)
    for name in (*WORKING_FILES, LOCK_NAME):
        (store.folder / name).unlink(missing_ok=True)
    for path in store.folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()
    store.folder.replace(store.output_dir)
    sync(store.output_dir.parent)
    return manifest


def assemble(folder: Path, origin: Origin, slices: Sequence[SliceProgress], *, tokenizer_dir: Path) -> None:
    """Put the finished slices in `folder` together, check the sums, and write the manifest last."""
    folders = [slice_dir(folder, number) for number in range(len(slices))]
    splits: dict[str, SplitContents] = {
        split: _assemble_split(folder, folders, slices, origin, split) for split in SPLITS
    }
    documents = [(path, shard) for path, p in zip(folders, slices, strict=True) for shard in p.documents]
    skipped_lines = sum((Counter(progress.skipped_lines) for progress in slices), Counter())
    num_documents = sum(progress.num_documents for progress in slices)
    manifest = Manifest(
        origin=origin,
        dtype=origin.dtype,
        num_lines=num_documents + skipped_lines.total(),
        num_documents=num_documents,
        skipped_lines=dict(sorted(skipped_lines.items())),
        splits=splits,
        documents=name_shards(folder, "documents/documents", documents),
    )
    manifest.check_sums()
    with (folder / "skipped.jsonl").open("wb") as skipped:
        for path in (path / name for path, p in zip(folders, slices, strict=True) for name in p.skipped_files):
            with path.open("rb") as part:
                shutil.copyfileobj(part, skipped)
    copy_tokenizer(tokenizer_dir, folder / "tokenizer")
    write_card(manifest, folder)
    for path in (folder / "skipped.jsonl", folder / CARD_NAME, folder / "tokenizer", *(folder / "tokenizer").iterdir()):
        sync(path)
    manifest.write(folder)


def _assemble_split(
    folder: Path, folders: Sequence[Path], slices: Sequence[SliceProgress], origin: Origin, split: Split
) -> SplitContents:
    last = SplitProgress()
    num_tail_tokens = _write_last_blocks(folder, folders, slices, origin, split, last)
    parts = [progress.splits[split] for progress in slices]
    shards = [(path, shard) for path, part in zip(folders, parts, strict=True) for shard in part.shards]
    shards += [(folder / LAST_BLOCKS_DIR, shard) for shard in last.shards]
    return SplitContents(
        num_documents=sum(part.num_documents for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_blocks=sum(part.num_blocks for part in [*parts, last]),
        num_padding_tokens=sum(part.num_padding_tokens for part in [*parts, last]),
        num_tail_tokens=num_tail_tokens,
        shards=name_shards(folder, f"data/{split}", shards),
    )


def _write_last_blocks(
    folder: Path,
    folders: Sequence[Path],
    slices: Sequence[SliceProgress],
    origin: Origin,
    split: Split,
    last: SplitProgress,
) -> int:
    """Pack what the slices have carried to their ends into `last`; returns the number of tokens left over."""
    (folder / LAST_BLOCKS_DIR).mkdir(exist_ok=True)
    packer = packer_of(origin)
    schema = block_schema(origin.block_length, origin.dtype)
    with ThreadPoolExecutor(1) as executor:
        writer = SplitWriter(folder / LAST_BLOCKS_DIR, split, 0, packer, schema, executor)
        for path, progress in zip(folders, slices, strict=True):
            if progress.carried_file is not None:
                writer.add_blocks(packer.add(read_carried(path / progress.carried_file)[split]), last)
        writer.add_blocks(packer.flush(), last)
        writer.close(last)
    return packer.carried.num_tokens


def name_shards(folder: Path, prefix: str, shards: Sequence[tuple[Path, Shard]]) -> list[Shard]:
    """Give shards their final names; one that an earlier try has moved is there already."""
    (folder / prefix).parent.mkdir(exist_ok=True)
    named = []
    for number, (source_dir, shard) in enumerate(shards):
        final = replace(shard, path=f"{prefix}-{number:05d}-of-{len(shards):05d}.parquet")
        if (source_dir / shard.path).exists():
            (source_dir / shard.path).replace(folder / final.path)
        named.append(final)
    sync((folder / prefix).parent)
    return named


def copy_tokenizer(tokenizer_dir: Path, target: Path) -> None:
    """Copy the files that make a tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            (target / name).write_bytes((tokenizer_dir / name).read_bytes())
