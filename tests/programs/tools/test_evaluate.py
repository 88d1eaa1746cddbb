"""tools.evaluate as a user starts it: its figures are those of transformers, of each document by itself."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR, python, run
from tests.programs.launching import records, run_forked_fine
from tests.rounding import MEAN_ROUNDING, loss_rounding
from tools.evaluate import main

EVALUATE = [sys.executable, "-m", "tools.evaluate"]
STORIES = [
    json.loads(line)["text"] for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text("utf-8").splitlines()
]
NUM_POSITIONS = 128
FIGURES = ("loss", "perplexity", "accuracy", "bits_per_byte", "num_tokens")


def write_documents(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def figures(output: Path, *words: object) -> dict[str, Any]:
    """In this process, since a child takes five seconds to import what is here already."""
    main([str(word) for word in (*words, "--output", output)])
    return json.loads(output.read_text())


def summed_losses(model: PreTrainedModel, ids: list[int]) -> tuple[float, int]:
    """The sum of a document's losses by transformers' own loss, and their number.

    In windows of all positions, each half of them later; a token that an earlier window had is masked.
    """
    total, num_done = 0.0, 1
    for start in range(0, len(ids), NUM_POSITIONS // 2):
        window = torch.tensor([ids[start : start + NUM_POSITIONS]])
        labels = window.clone()
        labels[:, : num_done - start] = -100
        num_new = start + window.shape[1] - num_done
        if num_new > 0:
            total += model(input_ids=window, labels=labels).loss.item() * num_new
            num_done += num_new
    return total, num_done - 1


@pytest.mark.launch
@pytest.mark.guarantee("Held-out metrics equal the loss of transformers on each document alone, to 1.3e-4.")
def test_the_figures_are_those_of_transformers_on_each_document_alone(trained_run: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_run / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained_run / "model")
    texts = {"short": [story[:200] for story in STORIES[:20]], "long": STORIES[20:26]}
    files = {name: write_documents(tmp_path / f"{name}.jsonl", found) for name, found in texts.items()}
    words = [trained_run, "--data_files", *(f"{name}={path}" for name, path in files.items())]
    done = run_forked_fine(*EVALUATE, *words, "--output", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["source", "long", "short", "total"]

    assert {name: values["num_documents"] for name, values in found["sources"].items()} == {"long": 6, "short": 20}
    with torch.no_grad():
        for name, documents in texts.items():
            ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in documents]
            assert (max(map(len, ids)) > NUM_POSITIONS) == (name == "long")
            sums = [summed_losses(model, document) for document in ids]
            values = found["sources"][name]
            assert values["num_tokens"] == sum(count for _, count in sums) == sum(len(document) - 1 for document in ids)
            assert values["loss"] == pytest.approx(
                sum(loss for loss, _ in sums) / values["num_tokens"], rel=loss_rounding(NUM_POSITIONS)
            )
            assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
            num_first = sum(len(tokenizer.decode(document[:1]).encode()) for document in ids)
            assert values["num_text_bytes"] == sum(len(text.encode()) for text in documents)
            assert values["num_bytes"] == values["num_text_bytes"] - num_first, "every byte once, but the first token's"
            bits = values["loss"] * values["num_tokens"] / math.log(2) / values["num_bytes"]
            assert values["bits_per_byte"] == pytest.approx(bits)

    total, sources = found["total"], found["sources"].values()
    for count in ("num_tokens", "num_documents", "num_bytes", "num_text_bytes"):
        assert total[count] == sum(values[count] for values in sources)
    for mean in ("loss", "accuracy"):
        weighted = sum(values[mean] * values["num_tokens"] for values in sources)
        assert total[mean] == pytest.approx(weighted / total["num_tokens"])

    alone = figures(tmp_path / "alone.json", *words, "--batch_tokens", 1)
    for name in FIGURES:
        assert alone["total"][name] == pytest.approx(total[name], rel=MEAN_ROUNDING), "the batches change nothing"


@pytest.mark.launch
@pytest.mark.guarantee("On blocks, evaluation gives the metrics that the run logged.")
def test_blocks_have_the_figures_that_the_run_logged(trained_run: Path, sample_store: Path, tmp_path: Path) -> None:
    found = figures(tmp_path / "test.json", trained_run, "--dataset", sample_store)
    (logged,) = records(trained_run, "test_loss")
    assert len(found["sources"]) > 1
    for name in FIGURES:
        assert found["total"][name] == pytest.approx(logged[f"test_{name}"], rel=MEAN_ROUNDING), name
        for source, values in found["sources"].items():
            assert values[name] == pytest.approx(logged[f"test_{name}/{source}"], rel=MEAN_ROUNDING), (name, source)


@pytest.mark.launch
def test_a_document_that_is_one_block_has_the_figures_of_the_block(trained_run: Path, tmp_path: Path) -> None:
    """With a checkpoint in place of a run."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained_run / "model")
    pieces = [tokenizer.decode(tokenizer(story)["input_ids"][:63]) for story in STORIES]
    texts = [text for text in pieces if len(tokenizer(text)["input_ids"]) == 63]
    assert len(texts) > 20
    documents, store = write_documents(tmp_path / "one.jsonl", texts), tmp_path / "blocks"
    words = ["--data_files", documents, "--block_length", 64, "--split", "0,0,1", "--output_dir", store]
    run_forked_fine(*python("preprocess.py", *words))
    checkpoint = trained_run / "checkpoint-3"
    by_document = figures(tmp_path / "documents.json", checkpoint, "--data_files", documents)
    by_block = figures(tmp_path / "blocks.json", checkpoint, "--dataset", store)
    for name in FIGURES:
        assert by_document["total"][name] == pytest.approx(by_block["total"][name], rel=MEAN_ROUNDING), name


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--model: is missing; pass a run folder"]),
        (["model"], ["--data_files, --dataset, --tasks, --prompts, --completions: are missing"]),
        (["model", "--data_files", "a", "--dataset", "b"], ["--data_files, --dataset: exclude each other; use one"]),
        (["model", "--data_files", "a", "--window_tokens", "1"], ["--window_tokens 1: must be in [2, 16777216]"]),
        (["model", "--data_files", "a", "--batch_tokens", "0"], ["--batch_tokens 0: must be in [1, 1073741824]"]),
        (["model", "--data_file", "a"], ["--data_file: unknown flag (did you mean data_files?)"]),
        (["model", "--dataset", "b", "--split", "dev"], ["'dev' is not one of train, validation, test"]),
        (["model", "--prompts", ""], ["--prompts: is empty; pass at least one word"]),
        (["model", "--prompts", "a", "--max_new_tokens", "0"], ["--max_new_tokens 0: must be in [1, 1e6]"]),
        (["model", "--prompts", "a", "--seed", "-1"], ["--seed -1: must be in [0, 4294967295]"]),
        (["model", "--prompts", "a", "--blocks", "b"], ["--reference_files, --blocks: are for --completions"]),
        (["model", "--prompts", "a", "--completions", "b"], ["--completions: excludes"]),
        (["--completions", "b", "--reference_files", "a"], ["--reference_files: needs a model"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        main(words)
    assert any(all(part in problem for part in parts) for problem in caught.value.problems), caught.value.problems
    assert all("\n" not in problem for problem in caught.value.problems)


def test_a_mistake_ends_with_its_exit_code() -> None:
    done = run(*EVALUATE)
    assert done.returncode == 2
    assert len(done.errors) == 2, done.output


@pytest.mark.launch
def test_what_cannot_be_evaluated_is_told(trained_run: Path, tmp_path: Path) -> None:
    empty = write_documents(tmp_path / "empty.jsonl", [""])
    words = [str(trained_run), "--data_files", str(empty)]
    with pytest.raises(UserError, match=r"no line is a document \(1 empty_text\)"):
        main(words)
    with pytest.raises(UserError, match="--window_tokens 500: the model has 128 positions"):
        main([*words, "--window_tokens", "500"])
    with pytest.raises(UserError, match="exists already"):
        main([*words, "--output", str(empty)])
