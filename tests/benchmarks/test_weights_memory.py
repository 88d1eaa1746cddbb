"""No process holds a whole parent model while it is loaded."""

import json
import re
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.programs.launching import SEARCH_PATH, run_preloaded

SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
LINE = re.compile(r"rank \d of 2, a model of 277 MB: (.*)")


@pytest.mark.launch
@pytest.mark.guarantee("No process ever holds the whole model of --weights in memory, mapped pages included.")
def test_a_process_holds_its_partition_and_a_tensor(tmp_path: Path) -> None:
    """Two processes: a half of the model each, a tensor of 9 % at most, and what libraries allocate for themselves."""
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, **SHAPE)).save_pretrained(tmp_path / "model")
    words = ["-m", "benchmarks.weights_memory", tmp_path / "model"]
    done = run_preloaded(2, words, {"PYTHONPATH": SEARCH_PATH})
    assert done.returncode == 0, done.output[-6000:]
    shares = [
        {name: int(text.partition(", ")[2].rstrip("%")) for name, text in json.loads(found).items()}
        for found in LINE.findall(done.stdout)
    ]
    assert len(shares) == 2
    for share in shares:
        assert 50 <= share["anonymous"] <= share["with mapped files"] < 100
