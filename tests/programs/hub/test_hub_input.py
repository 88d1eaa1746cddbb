"""A data set of the Hub as input: its split, downloaded or streamed, gives the blocks of its files."""

import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from pretraining.data.store.manifest import read_manifest
from tests.conftest import PROJECT_DIR, assert_one_error, python, run_fine
from tests.fakes.hub import LocalHub, running_hub
from tests.fakes.hub.repositories import User
from tests.fakes.hub.server import ALICE, BOB, DROP
from tests.programs.launching import run_forked, run_forked_fine
from tests.unit.data.build.test_partial_store import rebuilt_documents, stories
from tests.unit.data.tokenize.test_convert import save_gpt2

pytestmark = pytest.mark.launch

WITHOUT_WAITING = PROJECT_DIR / "tests/programs/hub/impatient_run.py"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    lines = [(json.dumps({"text": text}) + "\n").encode() for text in stories()]
    (tmp_path / "news/data").mkdir(parents=True)
    (tmp_path / "news/data/train-0.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:50])))
    (tmp_path / "news/data/train-1.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[50:90])))
    (tmp_path / "news/data/test-0.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[90:])))
    (tmp_path / "wiki").mkdir()
    pq.write_table(pa.table({"text": stories()[:30]}), tmp_path / "wiki/train-0.parquet", row_group_size=7)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted/scripted.py").write_text("raise SystemExit\n")
    with running_hub() as hub:
        hub.storage.serve_folder("dataset", "alice/scripted", tmp_path / "scripted", private=True)
        hub.storage.serve_folder("dataset", "alice/news", tmp_path / "news", private=True)
        hub.storage.serve_folder("dataset", "alice/wiki", tmp_path / "wiki", private=True)
        yield hub


@pytest.mark.parametrize("streaming", [pytest.param("true", marks=pytest.mark.long), "false"])
def test_splits_are_read_with_every_line_accounted_for(hub: LocalHub, streaming: str, tmp_path: Path) -> None:
    flags = ["--data_files", "hf://alice/news", "held=hf://alice/news:test", "wiki=hf://alice/wiki@main"]
    flags += ["--streaming", streaming, "--block_length", 64, "--split", "1,0,0", "--output_dir", tmp_path / "blocks"]
    env = hub.env(tmp_path / "home", ALICE)
    run_forked_fine(*python("preprocess.py", *flags), env=env)
    rows = pq.read_table(tmp_path / "blocks/documents").to_pylist()
    assert [row["source"] for row in rows] == ["train-0"] * 50 + ["train-1"] * 40 + ["held"] * 50 + ["wiki"] * 30
    texts = [*stories(), *stories()[:30]]
    assert [row["num_text_bytes"] for row in rows] == [len(text.encode()) for text in texts]
    ids = rebuilt_documents(tmp_path / "blocks")
    assert ids[140] == ids[0], "the same story from a compressed JSONL and from a Parquet file"
    sources = read_manifest(tmp_path / "blocks", flag="").origin.sources
    repository = hub.storage.readable("dataset", "alice/news", User("alice"))
    assert sources[0].path == f"hf://datasets/alice/news@{repository.head}/data/train-0.jsonl.gz"
    assert {source.sha256 for source in sources} <= known_hashes(hub)
    cached = list((tmp_path / "home/hub").rglob("*.jsonl.gz"))
    assert bool(cached) == (streaming == "false")
    assert "nothing to do" in run_forked_fine(*python("preprocess.py", *flags), env=env).stderr


def test_a_local_folder_is_never_taken_for_a_data_set_of_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    shadow = tmp_path / "work/alice/wiki"
    shadow.mkdir(parents=True)
    (shadow / "train.jsonl").write_text('{"text": "private"}\n' * 50)
    flags = ["--data_files", "hf://alice/wiki", "--tokenizer", PROJECT_DIR / "data/sample/tokenizer"]
    flags += ["--block_length", 64, "--output_dir", tmp_path / "blocks"]
    run_fine(*python("preprocess.py", *flags), env=hub.env(tmp_path / "home", ALICE), cwd=tmp_path / "work")
    assert read_manifest(tmp_path / "blocks", flag="").num_documents == 30


def test_a_data_set_whose_card_names_files_of_this_machine_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    """By `datasets`: the card could name private files of whoever reads it."""
    private = tmp_path / "private.jsonl"
    private.write_text('{"text": "private"}\n' * 50)
    (tmp_path / "evil").mkdir()
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {private}\n---\n"
    (tmp_path / "evil/README.md").write_text(card)
    (tmp_path / "evil/train.jsonl").write_text('{"text": "a"}\n')
    hub.storage.serve_folder("dataset", "alice/evil", tmp_path / "evil", private=False)
    flags = ["--data_files", "hf://alice/evil", "--block_length", 4, "--output_dir", tmp_path / "blocks"]
    done = run_forked(*python("preprocess.py", *flags), env=hub.env(tmp_path / "home", ALICE))
    assert_one_error(done, "--data_files hf://alice/evil: ", "don't belong to alice/evil")
    assert not (tmp_path / "blocks").exists()


def test_a_hub_that_goes_away_while_it_is_read_is_one_line(hub: LocalHub, tmp_path: Path) -> None:
    flags = [
        "--data_files",
        "hf://alice/wiki",
        "--streaming",
        "--block_length",
        64,
        "--output_dir",
        tmp_path / "blocks",
    ]
    env = hub.env(tmp_path / "home", ALICE)
    run_forked_fine(*python("preprocess.py", *flags[:-1], tmp_path / "first"), env=env)
    hub.faults["resolve"] = [404] * 50
    done = run_forked(*python("preprocess.py", *flags), env=env)
    assert_one_error(done, "--data_files hf://", "cannot be read from the Hub", "run the same command again")


@pytest.mark.parametrize(
    "files", ["tokenizer.json without eos", pytest.param("vocab.json and merges.txt", marks=pytest.mark.long)]
)
def test_a_tokenizer_of_the_hub_without_eos_or_tokenizer_json(hub: LocalHub, files: str, tmp_path: Path) -> None:
    """As openai-community/gpt2 is, and as older repositories are."""
    folder = tmp_path / "gpt2"
    save_gpt2(folder)
    expected = GPT2Tokenizer.from_pretrained(folder)
    if files.startswith("tokenizer.json"):
        expected.save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    hub.storage.serve_folder("model", "alice/gpt2", folder, private=True)
    flags = ["--tokenizer", "alice/gpt2", "--block_length", 64, "--output_dir", tmp_path / "blocks"]
    env = hub.env(tmp_path / "home", ALICE) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    run_forked_fine(*python("preprocess.py", *flags), env=env)
    origin = read_manifest(tmp_path / "blocks", flag="").origin
    assert (origin.tokenizer.name, origin.token_rules.eos_token_id) == ("alice/gpt2", expected.eos_token_id)
    ids = rebuilt_documents(tmp_path / "blocks")[0]
    assert ids == [*expected(stories()[0])["input_ids"], expected.eos_token_id]
    assert AutoTokenizer.from_pretrained(tmp_path / "blocks/tokenizer").eos_token == "<|endoftext|>"
    assert "nothing to do" in run_forked_fine(*python("preprocess.py", *flags), env=env).stderr


@pytest.mark.parametrize("name", [pytest.param("train.zip", marks=pytest.mark.long), "train.jsonl.ZIP"])
def test_a_zip_archive_of_the_hub_is_refused_before_anything_is_downloaded(
    hub: LocalHub, name: str, tmp_path: Path
) -> None:
    """`datasets` finds it; its members are read only from a disk."""
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: '*.*[pPlL]'\n---\n"
    )
    (tmp_path / "zipped/a.jsonl").write_text('{"text": "a"}\n')  # downloaded first otherwise
    with zipfile.ZipFile(tmp_path / "zipped" / name, "w") as archive:
        archive.writestr("a.jsonl", '{"text": "a"}')
    hub.storage.serve_folder("dataset", "alice/zipped", tmp_path / "zipped", private=True)
    flags = ["--data_files", "hf://alice/zipped", "--block_length", 4, "--output_dir", tmp_path / "blocks"]
    done = run_forked(*python("preprocess.py", *flags), env=hub.env(tmp_path / "home", ALICE))
    assert_one_error(done, f"/{name}: is read only from a disk; download it, and pass its path")
    downloaded = {path.suffix.lower() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert not {".zip", ".jsonl"} & downloaded


@pytest.mark.parametrize(
    ("token", "fault", "message"),
    [
        (ALICE, 503, "the Hub failed (503 ordered 503); run the same command again later"),
        pytest.param(
            *(ALICE, 403, "no access on the Hub (403 ordered 403); log in with `hf auth login`"), marks=pytest.mark.long
        ),
        pytest.param(
            *("hf_revoked_secret", 0, "no access on the Hub (401 Invalid credentials in Authorization header); log in"),
            marks=pytest.mark.long,
        ),
        pytest.param(ALICE, DROP, "the Hub cannot be reached (", marks=pytest.mark.long),
    ],
)
def test_an_input_of_the_hub_that_cannot_be_read_says_why(
    hub: LocalHub, token: str, fault: int | str, message: str, tmp_path: Path
) -> None:
    """Data set, tokenizer and model alike: what failed, and not that they do not exist."""
    hub.faults = {route: [fault] * 99 for route in ("info", "tree", "resolve", "paths_info")}
    env = hub.env(tmp_path / "home", token) | {"HF_HUB_ETAG_TIMEOUT": "5"}
    output = ["--output_dir", tmp_path / "blocks"]
    done = run_forked(*impatient("preprocess.py", "--data_files", "hf://alice/wiki", *output), env=env)
    assert_one_error(done, f"--data_files hf://alice/wiki: {message}")
    done = run_forked(*impatient("preprocess.py", "--tokenizer", "alice/tokenizer", *output), env=env)
    assert_one_error(done, f"--tokenizer alice/tokenizer: not a folder, and {message}")
    done = run_forked(*impatient("pretrain.py", "--model", "alice/model", "--dataset", "synthetic"), env=env)
    assert_one_error(done, f"--model alice/model: not a preset, file or folder, and {message}")


def impatient(*words: object) -> list[object]:
    """A program whose client of the Hub does not wait between its own retries."""
    interpreter, *words_of_python = python(*words)
    return [interpreter, WITHOUT_WAITING, *words_of_python]


def known_hashes(hub: LocalHub) -> set[str]:
    repositories = [hub.storage.readable("dataset", name, User("alice")) for name in ("alice/news", "alice/wiki")]
    entries = [entry for repository in repositories for entry in repository.trees[repository.head].values()]
    return {entry.sha256 or f"git {entry.git_oid}" for entry in entries}


@pytest.mark.parametrize(
    ("word", "token", "message"),
    [
        ("hf://alice/news:tset", ALICE, "has no split tset; use one of train, test"),
        ("hf://alice/news", BOB, "not found on the Hub"),
        pytest.param("hf://alice/nothing", ALICE, "not found on the Hub", marks=pytest.mark.long),
        ("hf://alice/news@no-such-branch", ALICE, "not found on the Hub"),
        ("hf://alice/scripted@main", ALICE, "the data set is a script, of which the Hub keeps only the newest result"),
        ("hf://alice", ALICE, "not of the form hf://USER/NAME"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    hub: LocalHub, word: str, token: str, message: str, tmp_path: Path
) -> None:
    flags = ["--data_files", word, "--output_dir", tmp_path / "blocks"]
    done = run_forked(*python("preprocess.py", *flags), env=hub.env(tmp_path / "home", token))
    assert_one_error(done, f"--data_files {word}", message)
    assert token not in done.output
