"""The backend that is chosen by the flag, the tokenizer and the size of the input."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pretraining.data.tokenize import choice
from pretraining.data.tokenize.backends import ReferenceBackend
from pretraining.data.tokenize.choice import MIN_BYTES, MIN_BYTES_TO_COMPILE, choose_backend
from pretraining.data.tokenize.compiled_backend import Functions, SwitchingBackend, load_backend
from pretraining.errors import UserError
from tests.unit.data.tokenize import vocabularies
from tests.unit.data.tokenize.test_backends import SAMPLE, WrongFor, odd_texts, reference_tokenizer
from tests.unit.data.tokenize.vocabularies import opened


def test_a_backend_that_fails_the_probe_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = reference_tokenizer(SAMPLE)
    wrong = WrongFor(ReferenceBackend(tokenizer), "CamelCase")
    monkeypatch.setattr(choice, "FastTokensBackend", lambda _: wrong)
    assert choose_backend("auto", opened(tokenizer), []).name == "reference"
    assert "encoding several times slower: fastokens cannot be used" in caplog.text
    assert "CamelCase" in caplog.text
    with pytest.raises(UserError, match="--tokenizer_backend fastokens: cannot use this tokenizer"):
        choose_backend("fastokens", opened(tokenizer), [])


def test_a_tokenizer_that_the_fast_backend_refuses_is_encoded_by_the_reference() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -3.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    backend = choose_backend("auto", opened(tokenizer), [])
    assert backend.encode(["a b"]).ids.tolist() == tokenizer.encode("a b").ids


def test_a_lowercasing_tokenizer_with_word_pieces_is_exact_by_whichever_backend() -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = odd_texts(200)
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    tokenizer.encode_special_tokens = True
    flat = choose_backend("auto", opened(tokenizer), ["[UNK]"]).encode(texts)
    assert flat.ids.tolist() == [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]


def test_the_size_of_the_input_decides(
    compiled: Functions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without machine code only a large input is worth a compilation, during which fastokens encodes."""
    tokenizer = vocabularies.small()
    found = {}
    for is_there in (True, False):
        monkeypatch.setattr(choice, "is_ready", lambda answer=is_there: answer)
        for size in (0, MIN_BYTES - 1, MIN_BYTES, MIN_BYTES_TO_COMPILE, None):
            backend = choose_backend("auto", opened(tokenizer), [], num_bytes=size)
            found[is_there, size] = "both" if isinstance(backend, SwitchingBackend) else backend.name
            assert backend.encode(["ab a"]).ids.tolist() == tokenizer.encode("ab a").ids
    small, compiled_one, both = "fastokens", "compiled", "both"
    assert list(found.values()) == [small, small, *[compiled_one] * 3, small, small, small, both, both]
    assert caplog.messages == []


def test_a_tokenizer_of_another_kind_has_fastokens_at_any_size(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_backend("auto", opened(reference_tokenizer(SAMPLE)), [], num_bytes=None).name == "fastokens"
    dropout = vocabularies.small(pre_tokenizer=None, ignore_merges=True)
    backend = choose_backend("auto", opened(dropout), [], num_bytes=None)
    assert backend.encode(["ab abc"]).ids.tolist() == dropout.encode("ab abc").ids
    assert caplog.messages == []


@pytest.mark.parametrize("fault", ["merges", "character_ids"])
def test_a_wrong_table_fails_the_probe(
    fault: str, compiled: Functions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = vocabularies.small()
    backend = load_backend(opened(tokenizer))
    table = getattr(backend._tables, fault)
    key = tokenizer.token_to_id("a") << 32 | tokenizer.token_to_id("b")
    table[ord("a") if fault == "character_ids" else np.flatnonzero(table == key)[0] + 1] += 1
    monkeypatch.setattr(choice, "load_backend", lambda _: backend)
    chosen = choose_backend("auto", opened(tokenizer), [], num_bytes=MIN_BYTES)
    assert chosen.name == "fastokens"
    (line,) = caplog.messages
    assert "encoding several times slower: compiled cannot be used (compiled gives other ids" in line


def test_the_compiled_backend_by_name() -> None:
    tokenizer = vocabularies.small()
    texts = odd_texts(300)
    flat = choose_backend("compiled", opened(tokenizer), ["<unk>"]).encode(texts)
    assert flat.ids.tolist() == ReferenceBackend(tokenizer).encode(texts).ids.tolist()
    with pytest.raises(UserError, match=r"--tokenizer_backend compiled: cannot use this tokenizer \(the pre-tokenizer"):
        choose_backend("compiled", opened(reference_tokenizer(SAMPLE)), [])
