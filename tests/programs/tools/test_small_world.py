"""The small world as a user makes it, and what the check says of a model."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from generate import main as generate
from preprocess import main as preprocess
from pretraining.data.mixture import load_mixture
from pretraining.errors import UserError
from pretraining.evaluation.known_limit import Gap
from pretraining.training.config.recording import known_limit_of
from small_world import WORLD
from small_world.reading import story_readings
from tests.conftest import PROJECT_DIR, assert_one_error
from tests.fakes.exported import export_random_model
from tests.programs.launching import run_forked, run_forked_fine
from tools.small_world import lines
from tools.small_world import main as make_world
from tools.small_world_check import CheckArguments, check_not_below, main, true_bits
from train_tokenizer import main as train_tokenizer

CHECK = [sys.executable, "-m", "tools.small_world_check"]
NUM_STORIES = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories, tokenizer, blocks and a model of random weights, as recipes/quickstart makes them."""
    folder = tmp_path_factory.mktemp("world")
    stories, tokenizer, blocks = folder / "made/news.jsonl", folder / "tokenizer", folder / "blocks"
    make_world(["--num_stories", str(NUM_STORIES), "--output", str(stories)])
    train_tokenizer(["--data_files", str(stories), "--vocab_size", "600", "--output_dir", str(tokenizer)])
    recipe = ["--recipe", str(PROJECT_DIR / "recipes/quickstart/preprocess.yaml"), "--split", "80,20,0"]
    preprocess([*recipe, "--data_files", str(stories), "--tokenizer", str(tokenizer), "--output_dir", str(blocks)])
    export_random_model(folder / "model", blocks, add_bos=True)
    return folder


def test_the_same_seed_makes_the_same_stories(folder: Path, tmp_path: Path) -> None:
    found = (folder / "made/news.jsonl").read_bytes()
    assert found == b"".join(lines(NUM_STORIES, seed=7))
    assert found != b"".join(lines(NUM_STORIES, seed=8))
    assert b"".join(lines(100, seed=7)) == b"".join(found.splitlines(keepends=True)[:100])
    stories = [json.loads(line) for line in found.splitlines()]
    assert {story["source"] for story in stories} == set(WORLD.sources)
    for story in stories[:50]:
        assert story_readings(WORLD, story["text"])[0].source == story["source"]
    output = folder / "made/news.jsonl"
    with pytest.raises(UserError, match=r"--output .*: exists already; choose another file"):
        make_world(["--output", str(output)])
    with pytest.raises(UserError, match=r"--num_stories 0: must be in \[1, "):
        make_world(["--num_stories", "0", "--output", str(tmp_path / "x")])


@pytest.mark.launch
def test_a_model_is_compared_with_the_limit_and_the_grammar(folder: Path, tmp_path: Path) -> None:
    samples, figures = tmp_path / "stories.jsonl", tmp_path / "figures.json"
    words = ["--prompt", "", "--num_samples", "4", "--max_new_tokens", "12", "--output", str(samples)]
    generate(["--model", str(folder / "model"), *words])
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == 4, "an empty prompt begins a document"
    trained, held_out = (next_text(folder, split) for split in ("train", "validation"))
    for row, text in zip(rows, (trained, held_out), strict=False):
        row["text"] = text
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    done = run_forked_fine(
        *CHECK, folder / "model", "--dataset", folder / "blocks", "--samples", samples, "--output", figures
    )
    found = json.loads(figures.read_text())
    total, sources = found["limits"]["total"], [found["limits"][source] for source in WORLD.sources]
    assert total["num_documents"] == sum(source["num_documents"] for source in sources) > 40
    assert 0.15 < total["limit"] < 0.25
    assert 2 < total["bits_per_byte"] < 5, "of random weights, log2(600) = 9.2 bits for each token of two to four bytes"
    assert total["above"] == pytest.approx(total["bits_per_byte"] / total["limit"] - 1)
    assert found["samples"]["num_stories"] == 4
    assert found["samples"]["consistent"] == 0.5
    num_sentences = found["samples"]["num_sentences"]
    num_right, num_copied = (found["samples"][name] * num_sentences for name in ("well_formed", "copied"))
    assert num_right >= 6
    assert num_right == pytest.approx(round(num_right))
    assert 3 <= num_copied < num_right, "all of the first, at most some of the second"

    shown = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert f"bits per byte {total['bits_per_byte']:.4f}, limit {total['limit']:.4f} " in done.stdout
    for name in ("well_formed", "consistent", "copied"):
        assert f"  {found['samples'][name]:>6.1%} of the " in done.stdout
    assert trained.split("\n")[0] in shown


def next_text(folder: Path, split: str) -> str:
    """A story of a split."""
    from pretraining.data.mixture import load_mixture
    from pretraining.evaluation.known_limit import document_texts
    from pretraining.generation.load_model import load_model
    from pretraining.runs.model_source import find_model

    _, tokenizer = load_model(find_model(str(folder / "model")))
    return document_texts(load_mixture([str(folder / "blocks")], revision=None), split, tokenizer)[0]


def test_without_a_model_the_limit_is_written_for_the_reports(folder: Path, tmp_path: Path) -> None:
    """The same limit, to the last digit, that a model is compared with; a run on these blocks keeps it."""
    blocks = shutil.copytree(folder / "blocks", tmp_path / "blocks")
    main(["--dataset", str(blocks)])
    limits = json.loads((blocks / "known_limit.json").read_text())
    figures = tmp_path / "figures.json"
    main([str(folder / "model"), "--dataset", str(blocks), "--output", str(figures)])
    assert limits == {"validation": pytest.approx(json.loads(figures.read_text())["limits"]["total"]["limit"])}
    mixture = load_mixture([str(blocks)], revision=None)
    assert known_limit_of(mixture) == limits
    assert known_limit_of(load_mixture([f"a={blocks}:0.5", f"b={folder / 'blocks'}:0.5"], revision=None)) is None
    (blocks / "known_limit.json").write_text('{"validation": "low"}')
    assert known_limit_of(mixture) is None
    assert known_limit_of(load_mixture([str(folder / "blocks")], revision=None)) is None


def test_a_model_below_the_limit_fails() -> None:
    arguments = CheckArguments(model="runs/x", dataset="blocks")
    fine = Gap(num_documents=100, bits_per_byte=0.2, limit=0.2, above=-0.01, standard_error=0.003)
    below = Gap(num_documents=100, bits_per_byte=0.19, limit=0.2, above=-0.05, standard_error=0.003)
    check_not_below({"local": fine, "total": fine}, arguments)
    with pytest.raises(
        UserError, match=r"--model runs/x: is below the limit \(sport by 5\.0%\), which indicates an information leak"
    ):
        check_not_below({"sport": below, "total": fine}, arguments)


def test_stories_of_another_world_are_refused(folder: Path, tmp_path: Path) -> None:
    text = WORLD.draw(random.Random(0))[1]
    assert true_bits(text)[0] in WORLD.sources
    with pytest.raises(UserError, match=r"is not a story of this small world; generate it with tools\.small_world"):
        true_bits(text + " And more.")
    for words, message in {
        (): "--dataset: is missing",
        ("--dataset", "x", "--output", str(tmp_path / "x")): "--model: is missing",
        (str(folder / "model"),): "--dataset: is missing",
        (str(folder / "model"), "--dataset", str(folder / "blocks"), "--split", "test"): "--split test: has no block",
    }.items():
        with pytest.raises(UserError, match=message):
            main(list(words))


@pytest.mark.launch
def test_an_empty_prompt_needs_bos(folder: Path, tmp_path: Path) -> None:
    export_random_model(tmp_path / "model", folder / "blocks")
    words = ["--model", tmp_path / "model", "--prompt", "", "--max_new_tokens", "4"]
    assert_one_error(
        run_forked(sys.executable, PROJECT_DIR / "generate.py", *words), "--prompt: is empty, and the model has no BOS"
    )
