"""The data set card: README.md of a block store, shown by the Hub, with the splits for `load_dataset`."""

import dataclasses
from pathlib import Path

from pretraining.data.encode.splits import SPLITS
from pretraining.data.store.manifest import Manifest, SourceFile
from pretraining.system.escapes import markdown_code, markdown_text
from pretraining.system.privacy import hide_path

PACKING = {
    "concat": "documents are concatenated in input order and cut where a block ends.",
    "best_fit": "documents are placed uncut where they fit best; only longer ones are cut; the rest is padding.",
}
CARD_NAME = "README.md"
CARD = """\
---
{license}pretty_name: Token blocks of {block_length}
task_categories:
- text-generation
configs:
- config_name: blocks
  default: true
  data_files:
{data_files}
- config_name: documents
  data_files:
  - split: documents
    path: documents/*.parquet
---

# Token blocks of {block_length} tokens

{num_documents:,} documents as blocks of {block_length:,} tokens for pretraining.

| split | documents | tokens | blocks | padding tokens | tail tokens (in no block) |
|---|---:|---:|---:|---:|---:|
{rows}

- Tokenizer: {tokenizer}, {vocab_size:,} tokens, in `tokenizer/`; sha256 of its tokenizer.json: `{tokenizer_hash}`.
- Token rules: {rule} (id {eos_id}). The name of a control token in a document is plain text.
- Packing: {packing}
- Splits: whole documents, by a hash of their text, in the proportion {weights}; identical texts share a split.
- Cleaning: {cleaning}.
- Lines read: {num_lines:,} = {num_documents:,} documents + {num_skipped:,} skipped{skipped} (see `skipped.jsonl`).

Sources:

{sources}

```python
from datasets import load_dataset

store = "USER/NAME"  # of this data set, or a folder with a copy of it
blocks = load_dataset(store, split="train")  # input_ids, and the documents in each block
documents = load_dataset(store, "documents", split="documents")  # where each document comes from
```

`manifest.json` has the size and hash of every shard.{no_license}
"""


def write_card(manifest: Manifest, folder: Path, *, license_name: str | None = None) -> None:
    """Write README.md for the block store in `folder`; `license_name` is the Hub's identifier."""
    origin = manifest.origin
    bos_id = origin.token_rules.bos_token_id
    cleaning = [
        markdown_text(f"{name} {value}") for name, value in dataclasses.asdict(origin.cleaning).items() if value
    ]
    filled = [split for split in SPLITS if manifest.splits[split].num_blocks]
    card = CARD.format(
        license="" if license_name is None else _as_yaml("license", license_name),
        no_license=" Its license is not set: `preprocess.py --license`." if license_name is None else "",
        block_length=origin.block_length,
        data_files="\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in filled),
        num_documents=manifest.num_documents,
        num_lines=manifest.num_lines,
        num_skipped=sum(manifest.skipped_lines.values()),
        tokenizer=markdown_code(hide_path(origin.tokenizer.name)),
        vocab_size=origin.tokenizer.vocab_size,
        tokenizer_hash=origin.tokenizer.sha256,
        rule=("" if bos_id is None else f"BOS (id {bos_id}) before and ") + "EOS after each document",
        eos_id=origin.token_rules.eos_token_id,
        packing=PACKING[origin.packing],
        weights=":".join(map(str, origin.split_weights)),
        cleaning=", ".join(cleaning) or "nothing removed",
        skipped="".join(f", {count:,} {reason.replace('_', ' ')}" for reason, count in manifest.skipped_lines.items()),
        rows="\n".join(
            f"| {name} | {split.num_documents:,} | {split.num_tokens:,} | {split.num_blocks:,} "
            f"| {split.num_padding_tokens:,} | {split.num_tail_tokens:,} |"
            for name, split in manifest.splits.items()
        ),
        sources="\n".join(f"- {described_source(source)}" for source in origin.sources),
    )
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _as_yaml(name: str, value: str) -> str:
    import yaml  # 12 ms, for the few cards that need it

    return yaml.safe_dump({name: value})


def described_source(source: SourceFile) -> str:
    """An input file as cards list it, without its folder on this machine."""
    name = "" if source.source is None else f"{markdown_text(source.source)}: "
    path = markdown_code(hide_path(source.path))
    return f"{name}{path} ({source.num_bytes:,} bytes, sha256 `{source.sha256[:16]}...`)"
