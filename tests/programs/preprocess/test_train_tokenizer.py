import json
from pathlib import Path

from transformers import AutoTokenizer

from tests.conftest import PROJECT_DIR, python, run_fine
from tests.programs.launching import run_forked, run_forked_fine


def test_the_sample_tokenizer_is_what_train_tokenizer_makes(tmp_path: Path) -> None:
    done = run_fine(*python("train_tokenizer.py", "--vocab_size", 8192, "--output_dir", tmp_path / "tokenizer"))
    assert "bytes per token on" in done.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (
            PROJECT_DIR / "data/sample/tokenizer" / name
        ).read_bytes()


def test_auto_tokenizer_opens_it_and_any_text_comes_back(tmp_path: Path) -> None:
    run_forked_fine(*python("train_tokenizer.py", "--vocab_size", 600, "--output_dir", tmp_path / "tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 600
    for text in (" I wanna go", "東京 🚆", "1234", "a\tb\n\n"):
        ids = tokenizer(text)["input_ids"]
        assert 0 not in ids
        assert tokenizer.decode(ids) == text


def test_more_tokens_than_the_text_gives_are_not_pretended(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "one two three"}) + "\n")
    flags = ["--data_files", data, "--vocab_size", 5000, "--output_dir", tmp_path / "tokenizer"]
    done = run_forked_fine(*python("train_tokenizer.py", *flags))
    assert "not --vocab_size 5,000" in done.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for flags, part in (
        (["--vocab_size", 10], "--vocab_size 10"),
        (["--output_dir", tmp_path], "exists already"),
        (["--text_field", "body", "--output_dir", tmp_path / "new"], "a document with the field --text_field body"),
        (["--data_files", "missing.jsonl"], "file not found"),
    ):
        done = run_forked(*python("train_tokenizer.py", *flags))
        assert done.returncode == 2
        assert len(done.errors) == 1
        assert part in done.errors[0]
