"""Every backend gives the reference's ids for any text, and one that does not is found out."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pretraining.data.tokenize import backends
from pretraining.data.tokenize.backends import (
    PROBE_TEXTS,
    BackendDiffersError,
    CheckedBackend,
    FastTokensBackend,
    FlatIds,
    ReferenceBackend,
)
from tests.conftest import PROJECT_DIR

SAMPLE = PROJECT_DIR / "data/sample/tokenizer/tokenizer.json"
CHARACTERS = (
    "aeiounrst  \n\t.,;'\"0123456789ABCÉéß東京中文한글אבجดक🚆👩\u200d👧\u0301\u0000\u0007\u200b\ufeff▁</s><s><unk>"
)


def per_text(flat: FlatIds) -> list[np.ndarray]:
    """Ids of each text."""
    return np.split(flat.ids, np.cumsum(flat.lengths)[:-1]) if len(flat.lengths) else []


def reference_tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def odd_texts(number: int) -> list[str]:
    """Texts of any characters, from all planes of Unicode, of any length."""
    chance = random.Random(0)
    texts = [*PROBE_TEXTS, "</s>", "<s>", "a</s>b", " </s> ", "<unk><s>", "x" * 100_000, "\n" * 5000, " " * 5000]
    while len(texts) < number:
        alphabet = chance.choice([CHARACTERS, "ab ", "".join(map(chr, chance.sample(range(0x110000), 50)))])
        text = "".join(chance.choices(alphabet, k=chance.choice([1, 3, 10, 50, 400])))
        if not any(unicodedata.category(character) == "Cs" for character in text):
            texts.append(text)
    return texts


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    reference, fast = ReferenceBackend(tokenizer), FastTokensBackend(tokenizer.to_str())
    ours, theirs = reference.encode(texts), fast.encode(texts)
    assert np.array_equal(ours.lengths, theirs.lengths)
    assert np.array_equal(ours.ids, theirs.ids)
    assert [ids.tolist() for ids in per_text(ours)] == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]


@pytest.mark.guarantee("Every backend gives the ids of the reference for difficult texts.")
def test_byte_level_bpe_of_odd_texts() -> None:
    assert_same(reference_tokenizer(SAMPLE), odd_texts(1000))


def test_llama2_of_odd_texts(real_data: Path) -> None:
    assert_same(reference_tokenizer(real_data / "llama2/tokenizer.json"), odd_texts(1000))


@pytest.mark.guarantee("Every backend gives the ids of the reference for real news.")
# All news are long: a quarter holds the same.
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_llama2_of_real_news(step: int, real_data: Path) -> None:
    """Every fourth text, or all."""
    lines = (real_data / "news.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[::step]]
    assert_same(reference_tokenizer(real_data / "llama2/tokenizer.json"), texts)


def test_no_text_is_an_empty_result() -> None:
    tokenizer = reference_tokenizer(SAMPLE)
    for backend in (ReferenceBackend(tokenizer), FastTokensBackend(tokenizer.to_str())):
        assert per_text(backend.encode([])) == []
        assert [ids.tolist() for ids in per_text(backend.encode(["", ""]))] == [[], []]


class WrongFor:
    """A fast backend that is right but for texts that contain a word."""

    name = "wrong"

    def __init__(self, reference: ReferenceBackend, word: str) -> None:
        self._reference = reference
        self._word = word

    def encode(self, texts: list[str]) -> FlatIds:
        flat = self._reference.encode(texts)
        return FlatIds(flat.ids + any(self._word in text for text in texts), flat.lengths)


def test_the_check_while_running_finds_a_difference_and_shows_the_document() -> None:
    reference = ReferenceBackend(reference_tokenizer(SAMPLE))
    checked = CheckedBackend(WrongFor(reference, "needle"), reference)
    fine = [f"story {number} of many" for number in range(5000)]
    assert np.array_equal(checked.encode(fine).ids, reference.encode(fine).ids)
    bad = [f"story {number} with a needle" for number in range(20_000)]
    with pytest.raises(BackendDiffersError, match=r"from token 0 on .* for 'story \d+ with a needle'"):
        checked.encode(bad)


def test_about_one_document_in_a_thousand_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(backends, "check_same_ids", lambda _fast, _reference, texts: checked.extend(texts))
    reference = ReferenceBackend(reference_tokenizer(SAMPLE))
    CheckedBackend(reference, reference).encode([f"{n}" + " a" * (n % 9) for n in range(50_000)])
    assert 25 <= len(checked) <= 100
