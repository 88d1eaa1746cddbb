"""What --weights means: which folder or repository, and whether its tokenizer is that of the blocks."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pretraining.cli.arguments.pretrain import ParentModel, parse_pretrain_arguments
from pretraining.data.mixture import BlockStore, find_store
from pretraining.errors import UserError
from pretraining.training.model.fields import model_fields
from pretraining.training.model.parent import check_vocabulary, find_parent, weight_files, with_parent
from tests.conftest import assert_one_error, run, run_fine
from tests.fakes.exported import export_random_model
from tests.fakes.hub import local_hub

SCRIPT = """
import sys
from pretraining.cli.program import run_program
from pretraining.training.model.parent import find_parent
find = lambda name: find_parent(name, flag="--weights", needs_tokenizer=False)
run_program(lambda argv: print(*vars(find(argv[0])).values(), sep='\\n'))
"""


@pytest.fixture(scope="module")
def model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random_model(tmp_path_factory.mktemp("parent") / "run/model", sample_store)


def parent_of(folder: Path) -> ParentModel:
    return find_parent(str(folder), flag="--weights", needs_tokenizer=False)


def test_a_run_folder_has_its_model(model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model.parent, tmp_path / "run")
    (own / "run.json").write_text(json.dumps({"identity": {"precision": "fp32", "model_config": {}}}))
    found = parent_of(own)
    assert (found.folder, found.name, found.run_name) == (str(own / "model"), str(own / "model"), "run")
    assert found.tokenizer_dir == str(own / "model")
    assert replace(found, place="") == replace(parent_of(own / "model"), place="")
    arguments = with_parent(parse_pretrain_arguments("", ["--weights", str(own)]))
    assert arguments.trainer["output_dir"] == "runs/run-continued"
    assert arguments.model_name == str(own / "model")
    assert model_fields(arguments.model, None)["hidden_size"] == 64
    (own / "model/tokenizer.json").unlink()
    assert parent_of(own).tokenizer_dir is None
    shutil.rmtree(own / "model")
    with pytest.raises(UserError, match="neither an exported model nor a complete checkpoint"):
        parent_of(own)


def test_a_model_of_the_hub_has_a_revision_and_no_pickles(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    with local_hub({"someone/tiny": folder, "someone/other": other}, tmp_path / "cache") as env:
        lines = run_fine(sys.executable, "-c", SCRIPT, "someone/tiny@main", env=env).stdout.splitlines()
        nothing = run(sys.executable, "-c", SCRIPT, "someone/nothing", env=env)
        refused = run(sys.executable, "-c", SCRIPT, "someone/other", env=env)
    found = Path(lines[0])
    names = {path.name for path in found.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "pytorch_model.bin" not in names
    assert lines[1:4] == ["--weights someone/tiny@main", f"someone/tiny at {found.name[:12]}", "tiny"]
    assert_one_error(nothing, "--weights someone/nothing: cannot be loaded")
    assert_one_error(refused, "--weights someone/other: is a mistral model")
    weights = [path for path in (tmp_path / "cache").rglob("*.safetensors") if "someone--other" in str(path)]
    assert weights == [], "what is refused is not downloaded"


def test_the_plan_of_a_model_of_the_hub_downloads_no_weights(model: Path, tmp_path: Path) -> None:
    script = SCRIPT.replace("needs_tokenizer=False", "needs_tokenizer=False, needs_weights=False")
    with local_hub({"someone/tiny": model}, tmp_path / "cache") as env:
        folder = run_fine(sys.executable, "-c", script, "someone/tiny", env=env).stdout.splitlines()[0]
    assert (Path(folder) / "config.json").is_file()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "quickstart"], "the weights come with their config; remove --model"),
        (["--pad_vocabulary_to_multiple_of", "64"], "changes the shape of --weights; add --grow_vocabulary"),
        (["--dataset", "synthetic"], "--dataset synthetic --weights"),
    ],
)
def test_flags_that_contradict_weights(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pretrain_arguments("", ["--weights", "x", *flags])


def test_a_vocabulary_grows_only_with_weights() -> None:
    with pytest.raises(UserError, match="--grow_vocabulary: is for the vocabulary of --weights"):
        parse_pretrain_arguments("", ["--grow_vocabulary"])


def test_overrides_change_no_shape(model: Path) -> None:
    def fields(*overrides: str) -> dict:
        arguments = parse_pretrain_arguments("", ["--weights", str(model), "--model_overrides", *overrides])
        return model_fields(with_parent(arguments).model, None)

    assert fields("rope_theta=500000", "max_position_embeddings=512")["max_position_embeddings"] == 512
    with pytest.raises(UserError) as caught:
        fields("hidden_size=32", "vocab_size=9000")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--model_overrides hidden_size",
        "--model_overrides vocab_size",
    ]


def test_the_index_decides_which_files_are_read(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        (tmp_path / name).touch()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(tmp_path)] == names
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(weight_files(tmp_path)) == 3
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]


def changed_store(sample_store: Path, folder: Path, change) -> BlockStore:
    """The sample with another tokenizer.json beside its blocks."""
    shutil.copytree(sample_store / "tokenizer", folder / "tokenizer")
    path = folder / "tokenizer/tokenizer.json"
    path.chmod(0o644)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    store = find_store(str(sample_store), revision=None)
    return BlockStore("blocks", folder, store.manifest)


def with_tokens(*texts: str):
    def change(content: dict) -> dict:
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.add_tokens(list(texts))
        return json.loads(tokenizer.to_str())

    return change


def exchanged(content: dict) -> dict:
    vocab = content["model"]["vocab"]
    (first, second) = [token for token, number in vocab.items() if number in (300, 301)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    return content


def test_a_tokenizer_is_the_same_though_its_file_is_not(model: Path, sample_store: Path) -> None:
    store = find_store(str(sample_store), revision=None)
    assert (model / "tokenizer.json").read_bytes() != (sample_store / "tokenizer/tokenizer.json").read_bytes()
    for grows in (False, True):
        check_vocabulary(parent_of(model), store, grows=grows)


def test_another_tokenizer_is_refused_with_its_first_difference(
    model: Path, sample_store: Path, tmp_path: Path
) -> None:
    parent = parent_of(model)
    longer = changed_store(sample_store, tmp_path / "longer", with_tokens("zzyx", "qqwv"))
    check_vocabulary(parent, longer, grows=True)
    with pytest.raises(UserError, match=r"has 2 tokens more than that of --weights .*; pass --grow_vocabulary"):
        check_vocabulary(parent, longer, grows=False)
    swapped = changed_store(sample_store, tmp_path / "swapped", exchanged)
    for grows in (False, True):
        with pytest.raises(UserError, match=r"\(id 300\) has id 301 in their tokenizer; preprocess with"):
            check_vocabulary(parent, swapped, grows=grows)


def test_other_merges_of_the_same_tokens_are_refused(model: Path, sample_store: Path, tmp_path: Path) -> None:
    def without_merges(content: dict) -> dict:
        content["model"]["merges"] = []
        return content

    store = find_store(str(sample_store), revision=None)
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(without_merges(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"has the tokens of --weights .*, but divides text otherwise"):
        check_vocabulary(parent_of(folder), store, grows=False)


def test_a_run_resumes_from_the_parent_that_it_began_from(model: Path, tmp_path: Path) -> None:
    """That is exported meanwhile, so --weights is another folder; another run, or a folder, is taken as it is."""
    source, own = tmp_path / "source", tmp_path / "own"
    for name in ("checkpoint-5", "model"):
        shutil.copytree(model, source / name)
    (source / "run.json").write_text(json.dumps({"identity": {"precision": "fp32", "model_config": {}}}))
    own.mkdir()
    old, new = str(source / "checkpoint-5"), str(source / "model")

    def folder(recorded: str, weights: Path, *flags: str) -> str:
        (own / "run.json").write_text(json.dumps({"arguments": {"weights": recorded}}))
        found = with_parent(parse_pretrain_arguments("", ["--weights", str(weights), "--output_dir", str(own), *flags]))
        assert found.parent is not None
        assert found.parent.place == f"--weights {weights}"
        assert found.model.model == found.parent.folder
        return found.parent.folder

    assert folder(new, source) == new
    with pytest.raises(UserError, match="checkpoint is incomplete"):
        folder(old, source)  # its save did not finish
    (source / "checkpoint-5").rename(source / "step-5")
    old = str(source / "step-5")
    assert folder(old, source) == old
    assert folder(old, source, "--resume", "never") == new
    assert folder(old, source / "model") == new
    assert folder(str(tmp_path / "gone"), source) == new
    assert folder(str(model), source) == new, "of another run"


def test_a_revision_of_a_folder_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    monkeypatch.chdir(model.parent)
    for name in ("model", "~/model"):
        with pytest.raises(UserError) as caught:
            find_parent(f"{name}@v1", flag="--weights", needs_tokenizer=False)
        assert str(caught.value).startswith(f"--weights {name}@v1: {name} is a folder here, which has no revision")
    model.rename(model.with_name("model@v1"))
    try:
        assert Path(find_parent("~/model@v1", flag="--weights", needs_tokenizer=False).folder).name == "model@v1"
    finally:
        model.with_name("model@v1").rename(model)
