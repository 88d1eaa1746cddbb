"""lm-evaluation-harness opens the exported model, without a network, on a task of this machine."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import PROJECT_DIR, run_fine
from tests.fakes.harness_task import write_task
from tests.rounding import loss_rounding
from tools.evaluate import main as evaluate

TASK = """
task: held_out
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason="lm_eval is not installed (pip install -c requirements.lock -c requirements-extras.txt lm_eval)",
    ),
]


def results_of_harness(run_dir: Path, tasks: list[str], folder: Path, *, eos: int) -> dict[str, dict[str, float]]:
    """The results of tasks in `folder`/tasks. By default the harness begins with BOS, which this model never saw."""
    words = ["run", "--model", "hf", "--model_args", f"pretrained={run_dir}/model,prefix_token_id={eos}"]
    words += ["--tasks", ",".join(tasks), "--include_path", str(folder / "tasks"), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    run_fine(sys.executable, "-m", "lm_eval", *words, "--output_path", folder / "found", env=offline, cwd=folder)
    (path,) = (folder / "found").rglob("results_*.json")
    return json.loads(path.read_text())["results"]


@pytest.mark.guarantee("Tasks have the scores of lm-evaluation-harness (where it is installed).")
def test_tasks_have_the_scores_of_the_harness(trained_run: Path, tmp_path: Path) -> None:
    """Also of texts that are longer than the model's positions, which lose the beginning of their context."""
    stories = [
        json.loads(line)["text"].split()
        for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text("utf-8").splitlines()[:12]
    ]
    choices = [
        {
            "context": " ".join(words[: 5 + number]),
            "choices": [" ".join(words[8:12]), "on the moon", "é"],
            "answer": number % 3,
        }
        for number, words in enumerate(stories)
    ]
    cloze = [
        {"context": " ".join(words[: 10 * number + 1]), "completion": words[10 * number + 1]}
        for number, words in enumerate(stories)
    ]
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "choices", "multiple_choice", choices)
    write_task(tmp_path / "tasks", "words", "loglikelihood", cloze)
    theirs = results_of_harness(trained_run, ["choices", "words"], tmp_path, eos=2)
    files = [f"{tmp_path}/tasks/{name}.jsonl" for name in ("choices", "words")]
    evaluate([str(trained_run), "--tasks", *files, "--output", f"{tmp_path}/ours.json"])
    ours = json.loads((tmp_path / "ours.json").read_text())["tasks"]
    for name, metrics in {"choices": ("acc", "acc_norm"), "words": ("acc", "perplexity")}.items():
        for metric in metrics:
            # A perplexity is exp of a mean of up to 150 nats.
            rounding = 150 * loss_rounding(128) if metric == "perplexity" else 1e-12
            assert ours[name][metric] == pytest.approx(theirs[name][f"{metric},none"], rel=rounding)
        assert ours[name]["acc_stderr"] == pytest.approx(theirs[name]["acc_stderr,none"])


@pytest.mark.guarantee("lm-evaluation-harness gives the bits per byte of transformers (where it is installed).")
def test_it_has_the_bits_per_byte_of_the_exported_model(trained_run: Path, tmp_path: Path) -> None:
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_text("utf-8").splitlines()[:8]
    texts = [json.loads(line)["text"][:200] for line in lines]
    documents = tmp_path / "held_out.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/held_out.yaml").write_text(TASK.format(path=documents))
    model = AutoModelForCausalLM.from_pretrained(trained_run / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained_run / "model")
    eos = tokenizer.eos_token_id
    results = results_of_harness(trained_run, ["held_out"], tmp_path, eos=eos)

    loss, num_bytes = 0.0, 0
    with torch.no_grad():
        for text in texts:  # it predicts no EOS behind it
            ids = torch.tensor([[eos, *tokenizer(text)["input_ids"]]])
            loss += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            num_bytes += len(text.encode())
    found = results["held_out"]["bits_per_byte,none"]
    assert found == pytest.approx(loss / math.log(2) / num_bytes, rel=loss_rounding(128))
