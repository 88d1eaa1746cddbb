import numpy as np

from pretraining.data.encode.encoded import document_metadata
from pretraining.data.input.documents import Document


def test_columns_of_documents_and_of_none() -> None:
    documents = [Document("é", "web", 3, 70), Document("ab", None, 4, 90)]
    rows = document_metadata(documents, ["web", "file"], ["é".encode(), b"ab"], np.array([0, 2]))
    assert (rows.sources, rows.splits.tolist()) == (["web", "file"], [0, 2])
    assert (rows.lines.tolist(), rows.byte_offsets.tolist(), rows.num_text_bytes.tolist()) == ([3, 4], [70, 90], [2, 2])
    none = document_metadata([], [], [], np.empty(0, np.int64))
    assert {getattr(none, name).dtype for name in ("lines", "byte_offsets", "num_text_bytes")} == {np.dtype(np.int64)}
