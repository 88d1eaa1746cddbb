"""Exports on the way: they change nothing in the run, and are never made twice."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pretraining.data.store.manifest import read_manifest
from pretraining.training.data.batch import collate_targets, model_inputs
from pretraining.training.data.dataset import BlockDataset, BlockFields
from pretraining.training.model.loss import token_losses
from tests.conftest import TINY_MODEL, python, run_fine
from tests.programs.launching import figures, records, run_forked_fine, train

pytestmark = pytest.mark.launch

FLAGS = ["--model_overrides", *TINY_MODEL, "attention_dropout=0.1", "--max_steps", 4]
FLAGS += ["--save_steps", 2, "--eval_steps", 2, "--per_device_train_batch_size", 4]
EXPORTS = ["--export_every_tokens", 1000]  # two steps have 1,024


# Two processes export as at the end of a run, which many tests read.
@pytest.mark.guarantee("Intermediate exports change nothing in the run and are never written twice.")
@pytest.mark.parametrize("name", ["1 rank", pytest.param("2 ranks", marks=pytest.mark.long)])
def test_exports_change_nothing_in_the_run(name: str, sample_store: Path, tmp_path: Path) -> None:
    """Not in one with dropout, whose random state shows in every loss; nor does going on make them again."""
    run_dir, other = tmp_path / "run", tmp_path / "other"
    done = train(name, sample_store, run_dir, *FLAGS, *EXPORTS)
    train(name, sample_store, other, *FLAGS, "--save_strategy", "no")
    assert figures(run_dir) == figures(other)
    for key in ("eval_loss", "test_loss"):
        assert [record[key] for record in records(run_dir, key)] == [record[key] for record in records(other, key)]

    exports = run_dir / "exports"
    assert sorted(path.name for path in exports.iterdir()) == ["step-2", "step-4"]
    assert {path.name for path in (exports / "step-2").iterdir()} == {path.name for path in (other / "model").iterdir()}
    for path in (exports / "step-4").iterdir():
        assert path.name == "README.md" or path.read_bytes() == (other / "model" / path.name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
    assert "This is step 2 of 4" in (exports / "step-2/README.md").read_text()
    for folder in (exports / "step-2", run_dir / "model"):
        assert f"exported model: {folder} (loaded again: loss " in done.stderr

    before = {path: path.stat().st_ctime_ns for path in exports.rglob("*")}
    shutil.rmtree(run_dir / "checkpoint-4")
    shutil.rmtree(run_dir / "model")
    done = train(name, sample_store, run_dir, *FLAGS, *EXPORTS)
    assert done.stderr.count("exists already, and is kept") == 1
    assert {path: path.stat().st_ctime_ns for path in exports.rglob("*")} == before
    assert figures(run_dir) == figures(other)

    words = ["--model", exports / "step-2", "--max_new_tokens", 3, "--prompt", "The"]
    done = run_forked_fine(*python("generate.py", *words))
    assert done.stdout.startswith("The")


def test_an_export_is_compared_with_documents_isolated_as_in_training(tmp_path: Path) -> None:
    """The loss of the line is that of transformers on a block of the run with isolation, and not without."""
    stories, blocks = tmp_path / "short.jsonl", tmp_path / "blocks"
    stories.write_text("".join(f'{{"text": "The {n} news of {n * n}, and {n % 7} more."}}\n' for n in range(200)))
    words = ["--data_files", stories, "--block_length", 64, "--split", "90,5,5", "--output_dir", blocks]
    run_fine(*python("preprocess.py", *words))
    flags = ["--document_masking", "--save_strategy", "no", "--eval_strategy", "no", "--max_steps", 12]
    flags += ["--per_device_train_batch_size", 8]
    done = train("1 rank", blocks, tmp_path / "run", *flags)
    found = re.search(r"loaded again: loss (\d\.\d{4}) on the run's first block, equal", done.stderr)
    assert found is not None, done.stderr[-3000:]
    isolated, crossing = (
        (block_losses(tmp_path / "run/model", blocks, BlockFields(document_masking=isolates)) - float(found[1])).abs()
        for isolates in (True, False)
    )
    assert isolated.min() < 1e-4, "four digits are rounded by 5e-5, and losses in fp32 differ by 1e-5"
    assert crossing[isolated.argmin()] > 1e-3


@torch.no_grad()
def block_losses(model_dir: Path, store: Path, fields: BlockFields) -> torch.Tensor:
    """The mean loss of each training block."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")
    model.config.use_cache = False
    blocks = BlockDataset(store, read_manifest(store, flag=""), "train", fields=fields)
    losses = []
    for number in range(len(blocks)):
        batch = collate_targets([blocks[number]])
        tokens = token_losses(model(**model_inputs(batch, in_one_row=False)), batch["labels"])
        losses.append(tokens.losses.sum() / tokens.is_predicted.sum())
    return torch.stack(losses)
