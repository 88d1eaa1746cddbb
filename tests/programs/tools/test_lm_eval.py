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
from tests.rounding import loss_rounding

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


@pytest.mark.launch
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed (pip install -c requirements.lock -c requirements-extras.txt lm_eval)",
)
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
    eos = tokenizer.eos_token_id  # otherwise it begins with BOS, which this model has never seen
    model_args = f"pretrained={trained_run}/model,prefix_token_id={eos}"
    words = ["run", "--model", "hf", "--model_args", model_args, "--tasks", "held_out"]
    words += ["--include_path", tmp_path / "tasks", "--device", "cpu", "--output_path", tmp_path / "found"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    run_fine(sys.executable, "-m", "lm_eval", *words, env=offline, cwd=tmp_path)

    loss, num_bytes = 0.0, 0
    with torch.no_grad():
        for text in texts:  # it predicts no EOS behind it
            ids = torch.tensor([[eos, *tokenizer(text)["input_ids"]]])
            loss += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            num_bytes += len(text.encode())
    (path,) = (tmp_path / "found").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]["held_out"]["bits_per_byte,none"]
    assert found == pytest.approx(loss / math.log(2) / num_bytes, rel=loss_rounding(128))
