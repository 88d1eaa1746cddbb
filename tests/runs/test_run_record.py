import json
from pathlib import Path

import pytest

from pretraining.runs.run_record import RunRecord


@pytest.mark.parametrize(
    "words", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--hub-token", "hf_secret"]]
)
def test_the_record_keeps_the_command_but_no_token(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--model", "llama2_7b", *words, "--seed", "7"])
    RunRecord(arguments={}, ds_config={}, model_config={}, num_parameters=1, manifest_sha256="", hardware={}).write(
        tmp_path
    )
    text = (tmp_path / "run.json").read_text()
    assert "hf_secret" not in text
    record = json.loads(text)
    assert "--model llama2_7b" in record["command"]
    assert record["command"].endswith("--seed 7")
    assert {"torch", "deepspeed", "transformers"} <= set(record["packages"])
    assert set(record["git"]) == {"commit", "is_dirty"}
