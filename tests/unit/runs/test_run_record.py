import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.run import CHANGEABLE
from pretraining.errors import UserError
from pretraining.runs.record_file import recorded_data
from pretraining.runs.run_record import UNCHANGEABLE, RunIdentity, RunRecord, check_same_run


def make_identity() -> RunIdentity:
    return RunIdentity(
        data=[{"manifest_sha256": "a", "blocks_per_1000": 1000}],
        tokenizer_sha256="t",
        model_config={"hidden_size": 4, "attention_dropout": 0.0},
        global_batch_tokens=512,
        seed=7,
        order_seed=7,
        document_masking=False,
        ignore_first_token=False,
        precision="bf16",
        optimizer="adamw",
        optimizer_settings={"weight_decay": 0.1},
    )


def make_record(identity: RunIdentity) -> RunRecord:
    return RunRecord(
        identity=identity,
        schedule={},
        arguments={},
        ds_config={},
        num_parameters=1,
        block_length=64,
        hardware={},
        resumed_from=None,
    )


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


def test_another_run_is_not_gone_on_with_unless_that_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = make_identity()
    make_record(identity).write(tmp_path)
    check_same_run(tmp_path, identity, allowed=[])
    other = dataclasses.replace(
        identity,
        data=[{"manifest_sha256": "b", "blocks_per_1000": 1000}],
        model_config={"hidden_size": 4, "attention_dropout": 0.1},
        global_batch_tokens=1024,
        optimizer="muon",
    )
    with pytest.raises(UserError) as caught:
        check_same_run(tmp_path, other, allowed=["data"])
    assert list(caught.value.problems) == [
        f"--resume: model_config.attention_dropout differs from that of {tmp_path} (it was 0.0, now 0.1); "
        "use the same flags, or pass --allow_changed model_config",
        f"--resume: global_batch_tokens differs from that of {tmp_path} (it was 512, now 1024); "
        "use the same flags, or pass --allow_changed global_batch_tokens",
        f"--resume: optimizer differs from that of {tmp_path} (it was adamw, now muon); use the same flags",
    ]
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    check_same_run(tmp_path, dataclasses.replace(other, optimizer="adamw"), allowed=CHANGEABLE)
    assert "--allow_changed data: data.0.manifest_sha256 was a, now it is b" in caplog.text


def test_weights_that_are_not_read_any_more_do_not_count(tmp_path: Path) -> None:
    """Earlier versions recorded all files of the folder, also those that its index does not name."""
    identity = dataclasses.replace(make_identity(), initial_weights={"a": "1", "b": "2", "consolidated": "3"})
    make_record(identity).write(tmp_path)
    check_same_run(tmp_path, dataclasses.replace(identity, initial_weights={"a": "1", "b": "2"}), allowed=[])
    for other in ({"a": "1", "b": "0"}, {"a": "1", "c": "2"}, None):
        with pytest.raises(UserError, match="the flag names another model now, or its files have changed"):
            check_same_run(tmp_path, dataclasses.replace(identity, initial_weights=other), allowed=[])


def test_what_may_be_allowed_to_change_is_what_makes_a_run() -> None:
    fields = {field.name for field in dataclasses.fields(RunIdentity)}
    assert set(CHANGEABLE) == (fields - set(UNCHANGEABLE)) | {"schedule"}


def test_a_record_with_the_earlier_names_of_fields_is_read_with_todays(tmp_path: Path) -> None:
    make_record(make_identity()).write(tmp_path)
    path = tmp_path / "run.json"
    text = path.read_text().replace("document_masking", "isolate_documents")
    path.write_text(text.replace("ignore_first_token", "mask_document_starts"))
    check_same_run(tmp_path, make_identity(), allowed=())
    with pytest.raises(UserError, match="document_masking"):
        check_same_run(tmp_path, dataclasses.replace(make_identity(), document_masking=True), allowed=())


def test_the_data_of_a_checkpoint_are_those_it_was_saved_with(tmp_path: Path) -> None:
    """A start with other data that was killed before its first save leaves its own data in run.json."""

    def write(folder: Path, manifest: str) -> list[dict[str, Any]]:
        data = [{"manifest_sha256": manifest, "blocks_per_1000": 1000}]
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"identity": {"data": data}}))
        return data

    checkpoint = tmp_path / "checkpoint-5"
    saved, started = write(checkpoint, "saved"), write(tmp_path, "started")
    assert recorded_data(checkpoint) == saved
    (checkpoint / "run.json").unlink()
    assert recorded_data(checkpoint) == started, "a checkpoint of an earlier version has no copy"
    assert recorded_data(None) is None
