import dataclasses
import json
from pathlib import Path

import pytest

from pretraining.cli.errors import UserError
from pretraining.runs.run_record import RunIdentity, RunRecord, check_same_run


def make_identity() -> RunIdentity:
    return RunIdentity(
        data=[{"manifest_sha256": "a", "blocks_per_1000": 1000}],
        model_config={"hidden_size": 4},
        global_batch_tokens=512,
        order_seed=7,
        isolate_documents=False,
        mask_document_starts=False,
        optimizer="adamw",
        weight_decay_on_norms=False,
    )


def make_record(identity: RunIdentity) -> RunRecord:
    return RunRecord(identity=identity, schedule={}, arguments={}, ds_config={}, num_parameters=1, hardware={})


@pytest.mark.parametrize(
    "words", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--hub-token", "hf_secret"]]
)
def test_the_record_keeps_the_command_but_no_token(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--model", "llama2_7b", *words, "--seed", "7"])
    make_record(make_identity()).write(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert "hf_secret" not in text
    written = json.loads(text)
    assert "--model llama2_7b" in written["command"]
    assert written["command"].endswith("--seed 7")
    assert {"torch", "deepspeed", "transformers"} <= set(written["packages"])
    assert set(written["git"]) == {"commit", "is_dirty"}


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    identity = make_identity()
    make_record(identity).write(tmp_path)
    check_same_run(tmp_path, identity)
    other = dataclasses.replace(identity, model_config={"hidden_size": 8}, global_batch_tokens=1024)
    with pytest.raises(UserError) as caught:
        check_same_run(tmp_path, other)
    assert [problem.split(": ")[1].split(" (")[0] for problem in caught.value.problems] == [
        f"model_config differs from that of {tmp_path}; give the same flags",
        f"global_batch_tokens differs from that of {tmp_path}",
    ]
    assert "(it was 512, now 1024)" in caught.value.problems[1]
