"""A block store is finished only if what was read, packed and written adds up."""

from collections import Counter
from pathlib import Path

import pytest

from pretraining.data.build.assemble import build_manifest
from pretraining.data.store.manifest import Manifest, read_manifest


def rebuilt(store: Path, folder: Path, *, num_documents: int) -> Manifest:
    """The manifest of a finished store, from its parts; its shards stay where they are."""
    found = read_manifest(store, flag="")
    documents = [(folder / "elsewhere", shard) for shard in found.documents]
    skipped_lines = Counter(found.skipped_lines)
    return build_manifest(folder, found.origin, found.splits, documents, skipped_lines, num_documents=num_documents)


def test_a_document_that_was_read_but_is_in_no_split_is_an_error(sample_store: Path, tmp_path: Path) -> None:
    expected = read_manifest(sample_store, flag="")
    assert rebuilt(sample_store, tmp_path, num_documents=expected.num_documents) == expected
    with pytest.raises(ValueError, match="documents do not add up"):
        rebuilt(sample_store, tmp_path, num_documents=expected.num_documents + 1)
