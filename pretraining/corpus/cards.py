"""The data set card: README.md of a block store, which the Hub shows and `load_dataset` reads its splits from."""

from pathlib import Path

from pretraining.corpus.manifest import Manifest
from pretraining.corpus.splits import SPLITS

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

{num_documents:,} documents, encoded with the tokenizer `{tokenizer}` (in `tokenizer/`), concatenated in input order
with {rule} and cut into blocks of {block_length:,} tokens for pretraining.

| split | documents | tokens | blocks | tail tokens (in no block) |
|---|---:|---:|---:|---:|
{rows}

Lines read: {num_lines:,} = {num_documents:,} documents + {num_skipped:,} skipped lines (listed in `skipped.jsonl`).

Sources:

{sources}

```python
from datasets import load_dataset
blocks = load_dataset("THIS_FOLDER", split="train")  # input_ids, document_starts, document_ids, first_document_offset
documents = load_dataset("THIS_FOLDER", "documents", split="documents")  # where each document comes from
```

`manifest.json` has the size and hash of every shard.{no_license}
"""


def write_card(manifest: Manifest, folder: Path, *, license_name: str | None = None) -> None:
    """Write README.md for the block store in `folder`; `license_name` is the Hub's word for that of the sources."""
    origin = manifest.origin
    with_bos = origin.token_rules.bos_token_id is not None
    filled = [split for split in SPLITS if manifest.splits[split].num_blocks]
    card = CARD.format(
        license="" if license_name is None else f"license: {license_name}\n",
        no_license=" Its licence is not named yet: `preprocess.py --license`." if license_name is None else "",
        block_length=origin.block_length,
        data_files="\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in filled),
        num_documents=manifest.num_documents,
        num_lines=manifest.num_lines,
        num_skipped=sum(manifest.skipped_lines.values()),
        tokenizer=origin.tokenizer.name,
        rule="BOS before and EOS after each" if with_bos else "EOS after each",
        rows="\n".join(
            f"| {name} | {split.num_documents:,} | {split.num_tokens:,} | {split.num_blocks:,} "
            f"| {split.num_tail_tokens:,} |"
            for name, split in manifest.splits.items()
        ),
        sources="\n".join(f"- `{source.path}` ({source.num_bytes:,} bytes)" for source in origin.sources),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
