"""Columns and tables of a block store's Parquet files."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pretraining.data.encode.encoding import DocumentMetadata
from pretraining.data.encode.splits import SPLITS
from pretraining.data.store.packing import Blocks

ANSWER_COLUMN = "is_answer"
ANSWER_BIT = 1 << 31  # set in the uint32 ids of answers during packing
DOCUMENT_SCHEMA = pa.schema(
    {
        "document_id": pa.int64(),
        "split": pa.string(),
        "source": pa.string(),
        "file": pa.string(),
        "line": pa.int64(),
        "byte_offset": pa.int64(),
        "num_text_bytes": pa.int64(),
        "num_tokens": pa.int64(),
    }
)


def block_schema(block_length: int, dtype: str, *, has_answers: bool = False) -> pa.Schema:
    """Columns of a shard of blocks: ids; begins, ids and earlier tokens of documents; padding.

    `has_answers`: of conversations, with a column that marks the answers.
    """
    columns = {
        "input_ids": pa.list_(pa.type_for_alias(dtype), block_length),
        "document_starts": pa.list_(pa.uint32()),
        "document_ids": pa.list_(pa.int64()),
        "document_offsets": pa.list_(pa.int64()),
        "num_padding_tokens": pa.uint32(),
    }
    return pa.schema({**columns, ANSWER_COLUMN: pa.list_(pa.uint8(), block_length)} if has_answers else columns)


def block_table(batches: Sequence[Blocks], schema: pa.Schema) -> pa.Table:
    """One table of all blocks of `batches`."""
    return pa.concat_tables([_table_of(blocks, schema) for blocks in batches]).combine_chunks()


def _table_of(blocks: Blocks, schema: pa.Schema) -> pa.Table:
    block_length = blocks.input_ids.shape[1]
    bounds = pa.array(blocks.piece_bounds, pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(bounds, pa.array(getattr(blocks, name), schema.field(name).type.value_type))
        for name in ("document_starts", "document_ids", "document_offsets")
    }
    ids = blocks.input_ids.reshape(-1)
    if ANSWER_COLUMN in schema.names:
        is_answer = pa.array((ids >= ANSWER_BIT).astype(np.uint8))
        lists[ANSWER_COLUMN] = pa.FixedSizeListArray.from_arrays(is_answer, block_length)
        ids = (ids % ANSWER_BIT).astype(schema.field("input_ids").type.value_type.to_pandas_dtype())
    columns = {
        "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids), block_length),
        **lists,
        "num_padding_tokens": pa.array(blocks.num_padding_tokens, pa.uint32()),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def document_table(rows: DocumentMetadata, path: str, document_ids: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """One row per document of a batch."""
    columns = [
        document_ids,
        [SPLITS[number] for number in rows.splits],
        rows.sources,
        [path] * len(rows.lines),
        rows.lines,
        rows.byte_offsets,
        rows.num_text_bytes,
        lengths,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DOCUMENT_SCHEMA, strict=True)]
    return pa.table(arrays, schema=DOCUMENT_SCHEMA)
