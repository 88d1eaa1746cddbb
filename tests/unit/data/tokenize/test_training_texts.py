"""Which documents a tokenizer is trained on and measured on, in bounded memory."""

import gzip
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.input.documents import ReadingOptions
from pretraining.data.input.find import find_inputs
from pretraining.data.tokenize import training_texts
from pretraining.data.tokenize.training_texts import HELD_OUT_EVERY, TrainingTexts

OPTIONS = ReadingOptions(1 << 20, "text")
LOGGER = "pretraining.data.tokenize.training_texts"
TEXTS = [f"{number} é " + "word " * (number % 7) for number in range(1, 1001)]


def written(path: Path, texts: list[str]) -> str:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def test_every_document_is_used_or_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    texts = TrainingTexts(find_inputs([written(tmp_path / "a.jsonl", TEXTS)]), OPTIONS)
    used = list(texts)
    assert texts.held_out == TEXTS[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    assert used == [text for number, text in enumerate(TEXTS, start=1) if number % HELD_OUT_EVERY]
    assert texts.num_bytes == sum(len(text.encode()) for text in used)
    assert "training on 0.0 MB of text; merging its words" in caplog.messages


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_of_more_text_an_even_sample_is_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setattr("pretraining.data.input.reading.BATCH_BYTES", 1000)
    numbers = [f"{number:05d}" for number in range(20_000)]
    files = find_inputs([written(tmp_path / name, numbers[:10_000]), written(tmp_path / "b.jsonl", numbers[10_000:])])
    texts = TrainingTexts(files, OPTIONS, max_bytes=20_000)
    used = list(texts)
    assert texts.num_bytes == 5 * len(used)
    assert texts.num_bytes + texts.num_unused_bytes == 95_000
    assert 19_000 < texts.num_bytes <= 20_000
    assert used == list(TrainingTexts(files, OPTIONS, max_bytes=20_000))
    per_tenth = np.histogram([int(text) for text in used], 10, (0, 20_000))[0]
    for half in (per_tenth[:5], per_tenth[5:])[name.endswith("gz") :]:  # so small a compressed file is read in one go
        assert min(half) > 0.6 * max(half)
    assert caplog.messages[0] == "training on 0.0 MB of text, an even sample of 0.1 MB; merging its words"


def test_what_is_held_out_stays_small_and_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_inputs([written(tmp_path / "a.jsonl", [str(number) for number in range(1, 8001)])])
    monkeypatch.setattr(training_texts, "MAX_HELD_OUT_BYTES", 100)
    texts = TrainingTexts(files, OPTIONS)
    assert len(list(texts)) == 7600
    kept = [int(text) for text in texts.held_out]
    steps = {second - first for first, second in itertools.pairwise(kept)}
    assert steps == {kept[0]}
    assert kept[0] % HELD_OUT_EVERY == 0
    assert 50 < sum(map(len, texts.held_out)) <= 100


def test_a_held_out_text_longer_than_the_limit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_inputs([written(tmp_path / "a.jsonl", ["long text"] * HELD_OUT_EVERY)])
    monkeypatch.setattr(training_texts, "MAX_HELD_OUT_BYTES", 3)
    texts = TrainingTexts(files, OPTIONS)
    assert len(list(texts)) == HELD_OUT_EVERY - 1
    assert texts.held_out == ["long text"]
