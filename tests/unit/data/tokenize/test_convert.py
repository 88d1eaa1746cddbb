"""Tokenizer files of other tools give the ids that those tools give."""

import base64
import itertools
import json
from pathlib import Path

import pytest
import regex
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer

from pretraining.data.tokenize import convert
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR
from tests.unit.data.build.test_partial_store import stories
from tests.unit.data.tokenize.test_backends import per_text
from tests.unit.data.tokenize.test_tokenizer import ODD_TEXTS

TEXTS = [*ODD_TEXTS, "don't stop<|endoftext|> there, 1,234 of 5678   ", *stories()[:20]]
# That of llama_models/llama3/tokenizer.py.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_gpt2(folder: Path, *, end: str = convert.GPT2_END) -> None:
    """vocab.json and merges.txt as GPT-2 has them, with its name of EOS."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(stories(), vocab_size=600, special_tokens=[end], show_progress=False)
    folder.mkdir(exist_ok=True)
    trained.save_model(str(folder))


def ids_of(folder: Path) -> list[list[int]]:
    return [ids[:-1].tolist() for ids in per_text(load_document_tokenizer(str(folder), add_bos=False).encode(TEXTS))]


@pytest.mark.guarantee("GPT-2's vocab.json and merges.txt give the ids of transformers.")
@pytest.mark.parametrize("prefix", ["", "gpt2-"])
def test_gpt2_files_give_the_ids_of_transformers(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "gpt2"
    save_gpt2(folder)
    theirs = GPT2Tokenizer.from_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).rename(folder / f"{prefix}{name}")
    tokenizer = load_document_tokenizer(str(folder), add_bos=False)
    assert tokenizer.rules.eos_token_id == theirs.eos_token_id
    expected = [theirs(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert ids_of(folder) == expected
    opened = AutoTokenizer.from_pretrained(tokenizer.folder)
    assert (opened.eos_token, opened.convert_tokens_to_ids(opened.eos_token)) == (convert.GPT2_END, theirs.eos_token_id)
    assert [opened(text, split_special_tokens=True)["input_ids"] for text in TEXTS] == expected
    assert opened.decode([*expected[-1], theirs.eos_token_id], skip_special_tokens=True) == TEXTS[-1]


def test_gpt2_files_whose_settings_put_a_space_before_a_text(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    without = ids_of(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}')
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    found = ids_of(tmp_path)
    assert found == [theirs(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert found != without


def test_eos_of_the_folder_has_priority_over_that_of_gpt2(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "other", end="</s>")
    with pytest.raises(UserError, match=r"has no eos_token .*; set eos_token in its tokenizer_config\.json$"):
        load_document_tokenizer(str(tmp_path / "other"), add_bos=False)
    (tmp_path / "other/tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert load_document_tokenizer(str(tmp_path / "other"), add_bos=False).rules.eos_token_id == 0


def test_a_folder_whose_files_are_another_kind_is_refused(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "qwen")
    (tmp_path / "qwen/tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match="names Qwen2Tokenizer, and only GPT2Tokenizer is converted; save tokenizer"):
        load_document_tokenizer(str(tmp_path / "qwen"), add_bos=False)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "gpt2")
    (tmp_path / "gpt2/vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"gpt2: vocab\.json and merges\.txt cannot be read .*; copy the files"):
        load_document_tokenizer(str(tmp_path / "gpt2"), add_bos=False)


@pytest.mark.guarantee("EOS is what AutoTokenizer reads where the configuration names none.")
def test_a_repository_without_eos_in_its_configuration(tmp_path: Path) -> None:
    """openai-community/gpt2 has a tokenizer.json, and a tokenizer_config.json of model_max_length alone."""
    save_gpt2(tmp_path / "files")
    folder = tmp_path / "repository"
    GPT2Tokenizer.from_pretrained(tmp_path / "files").save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_document_tokenizer(str(folder), add_bos=True)
    assert AutoTokenizer.from_pretrained(folder).eos_token == convert.GPT2_END
    assert (tokenizer.rules.eos_token_id, tokenizer.rules.bos_token_id) == (0, 0)
    assert (tokenizer.folder / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_eos_of_the_models_configuration_where_the_class_has_none(tmp_path: Path) -> None:
    sample = PROJECT_DIR / "data/sample/tokenizer"
    (tmp_path / "tokenizer.json").write_bytes((sample / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    assert load_document_tokenizer(str(tmp_path), add_bos=False).rules.eos_token_id == 2
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 100000}')
    with pytest.raises(UserError, match="has no eos_token"):
        load_document_tokenizer(str(tmp_path), add_bos=False)


def test_code_of_a_repository_is_not_executed(tmp_path: Path) -> None:
    sample = PROJECT_DIR / "data/sample/tokenizer"
    (tmp_path / "tokenizer.json").write_bytes((sample / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: eos_token = '</s>'\n")
    with pytest.raises(UserError, match="has no eos_token"):
        load_document_tokenizer(str(tmp_path), add_bos=False)
    assert not (tmp_path / "executed").exists()


def llama3_ranks() -> dict[bytes, int]:
    """As many tokens as Llama 3 has: bytes, words of stories with all of their beginnings, and pairs of bytes."""
    tokens = dict.fromkeys(bytes([number]) for number in range(256))
    for word in sorted({word for story in stories() for word in story.encode().split()}):
        tokens |= dict.fromkeys(b" "[: n % 2] + word[: n // 2] for n in range(4, 2 * min(len(word), 12) + 1))
    fillers = (bytes(pair) for pair in itertools.product(range(256), repeat=2))
    longer = (bytes(three) for three in itertools.product(b"abcdefgh ", range(256), range(256)))
    for filler in itertools.chain(fillers, longer):
        if len(tokens) == convert.LLAMA3_RANKS:
            return {token: rank for rank, token in enumerate(tokens)}
        tokens[filler] = None
    raise AssertionError("not enough tokens")


def tiktoken_ids(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding by the book: of all neighbors, those whose union has the lowest rank are joined first."""
    words = regex.findall(LLAMA3_PATTERN, text)
    ids_of_words = {word: word_ids(word.encode(), ranks) for word in set(words)}
    return [number for word in words for number in ids_of_words[word]]


def word_ids(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    parts = [word] if word in ranks else [word[n : n + 1] for n in range(len(word))]
    while len(parts) > 1:
        unions = [ranks.get(left + right, 1 << 30) for left, right in itertools.pairwise(parts)]
        place = unions.index(min(unions))
        if unions[place] == 1 << 30:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


# As long as that of Llama 3 is long: nothing but its length is another.
@pytest.mark.parametrize("num_ranks", [50_000, pytest.param(convert.LLAMA3_RANKS, marks=pytest.mark.long)])
def test_a_tiktoken_file_of_llama_3(num_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LLAMA3_RANKS", num_ranks)
    ranks = llama3_ranks()
    lines = [base64.b64encode(token).decode() + f" {rank}\n" for token, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    tokenizer = load_document_tokenizer(str(tmp_path), add_bos=True)
    assert (tokenizer.rules.bos_token_id, tokenizer.rules.eos_token_id) == (num_ranks, num_ranks + 1)
    assert tokenizer.vocab_size == num_ranks + 256
    for text, ids in zip(TEXTS, ids_of(tmp_path), strict=True):
        assert ids == tiktoken_ids(text, ranks), text
    (tmp_path / "tokenizer.model").write_text("".join(lines[:1000]))
    with pytest.raises(UserError, match=f"has 1,000 ranks of tiktoken, and only Llama 3's {num_ranks:,} are converted"):
        load_document_tokenizer(str(tmp_path), add_bos=True)


def test_the_same_files_are_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_gpt2(tmp_path / "gpt2")
    first = load_document_tokenizer(str(tmp_path / "gpt2"), add_bos=False)
    assert first.folder.is_relative_to(cache)
    before = (first.folder / "tokenizer.json").stat().st_mtime_ns
    assert load_document_tokenizer(str(tmp_path / "gpt2"), add_bos=False).folder == first.folder
    assert (first.folder / "tokenizer.json").stat().st_mtime_ns == before
    monkeypatch.setattr(convert, "CONVERSION", convert.CONVERSION + 1)
    again = load_document_tokenizer(str(tmp_path / "gpt2"), add_bos=False)
    assert (again.folder, again.sha256) != (first.folder, None)
    assert again.sha256 == first.sha256, "the same bytes on every machine"
    assert Tokenizer.from_file(str(again.folder / "tokenizer.json")).token_to_id(convert.GPT2_END) == 0
