"""The longest run that a text has in common with a training document is found, wherever blocks cut it."""

import json
from pathlib import Path

import numpy as np
import pytest

from pretraining.cli.progress import Progress
from pretraining.data.inspect import overlap
from pretraining.data.inspect.overlap import find_copied_runs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from tests.conftest import PROJECT_DIR, python
from tests.programs.launching import run_forked_fine

STORIES = [
    json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text("utf-8").splitlines()
]
NUM_TOKENS = 120


def longest_common_run(text: np.ndarray, documents: np.ndarray) -> tuple[int, np.ndarray]:
    """Token by token, the slow way; also which tokens of the text stand in a common run of 8 or more."""
    best, is_common = 0, np.zeros(len(text), bool)
    lengths = np.zeros(len(documents) + 1, np.int64)
    for place, token in enumerate(text):
        lengths[1:] = np.where(documents == token, lengths[:-1] + 1, 0)
        longest = int(lengths.max())
        best = max(best, longest)
        if longest >= 8:
            is_common[place + 1 - longest : place + 1] = True
    return best, is_common


# The other packing is long: documents are cut as often.
@pytest.mark.parametrize("packing", ["concat", pytest.param("best_fit", marks=pytest.mark.long)])
@pytest.mark.guarantee("A sentence copied from the training data is found with its line, wherever blocks cut it.")
def test_runs_are_those_of_a_search_token_by_token(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of 400 tokens in blocks of 16 are cut 25 times; texts are made of parts of them, some changed."""
    store = tmp_path / "blocks"
    words = ["--packing", packing, "--block_length", 16, "--split", "3,1,1", "--tokens_per_shard", 4000]
    run_forked_fine(*python("preprocess.py", *words, "--output_dir", store))
    tracer = BlockProvenance(store, flag="")
    places = [tracer.document(number) for number in range(tracer.manifest.num_documents)]
    tokenizer = load_document_tokenizer(str(store / "tokenizer"), add_bos=False)
    documents = {
        place.document_id: tokenizer.encode([STORIES[place.line - 1]]).ids.astype(np.int64)
        for place in places
        if place.split == "train"
    }
    draw = np.random.default_rng(0)
    texts = []
    for number in range(20):
        parts = [documents[key] for key in draw.choice(sorted(documents), 3)]
        cuts = [part[(begin := draw.integers(len(part) - 60)) : begin + draw.integers(2, 50)] for part in parts]
        texts.append(np.concatenate(cuts)[:NUM_TOKENS] if number % 4 else draw.integers(3, 8000, 100))
    texts += [np.tile(texts[1][:10], 30), texts[1][:5], texts[1][:0]]
    texts = [text[text != tokenizer.rules.eos_token_id] for text in texts]

    monkeypatch.setattr(overlap, "PAIRS_AT_ONCE", 50)
    with Progress(1) as progress:
        found = find_copied_runs(
            tracer, [text.tolist() for text in texts], split="train", progress=progress, num_workers=2
        )
    in_blocks = tokens_in_blocks(tracer)
    between = np.array([-1])  # no token
    all_documents = np.concatenate([part for key in in_blocks for part in (documents[key][: in_blocks[key]], between)])
    for text, copied in zip(texts, found, strict=True):
        expected, is_common = longest_common_run(text, all_documents)
        run = copied.longest
        assert copied.num_tokens == is_common.sum()
        assert (0 if run is None else run.num_tokens) == (expected if expected >= 8 else 0)
        if run is not None:
            words = text[run.start : run.start + run.num_tokens]
            document = documents[run.document_id]
            assert document[run.document_token : run.document_token + run.num_tokens].tolist() == words.tolist()
    assert sum(copied.longest is not None for copied in found) > 12


def tokens_in_blocks(tracer: BlockProvenance) -> dict[int, int]:
    """How many tokens of each document stand in blocks; the rest is the tail that fills none."""
    found: dict[int, int] = {}
    for block in range(tracer.manifest.splits["train"].num_blocks):
        for piece in tracer.pieces("train", block):
            found[piece.document_id] = piece.num_tokens_before + piece.num_tokens
    return found
