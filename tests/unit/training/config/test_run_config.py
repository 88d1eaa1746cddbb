"""What cannot run is refused before anything is loaded, in words that name the flag, the value and the remedy."""

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.arguments.pretrain import (
    DataArguments,
    ModelArguments,
    OptimizationArguments,
    PretrainArguments,
)
from pretraining.cli.arguments.run import DurabilityArguments, ObservabilityArguments, PlanArguments
from pretraining.cli.arguments.trainer import TRAINER_DEFAULTS
from pretraining.data.mixture import load_mixture
from pretraining.errors import UserError
from pretraining.planning.flops import num_parameters
from pretraining.runs.run_record import differences
from pretraining.training.config.early_checks import check_inputs
from pretraining.training.config.resume import ResumePoint
from pretraining.training.config.run_config import RunConfig, resolve_phase_ends, resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir, common_settings, run_identity
from pretraining.training.config.startup_log import log_run_config
from pretraining.training.optim.schedule import Schedule
from tests.conftest import PROJECT_DIR, TINY_MODEL


def plan(
    store: Path | list[str],
    tmp_path: Path,
    *,
    flags: dict[str, Any] | None = None,
    tokens: int | None = 512,
    data: dict[str, Any] | None = None,
    optimization: dict[str, Any] | None = None,
    durability: dict[str, Any] | None = None,
    wishes: dict[str, Any] | None = None,
    **model: Any,
) -> RunConfig:
    trainer_flags = {
        **TRAINER_DEFAULTS,
        "deepspeed": str(PROJECT_DIR / "ds_config.json"),
        "output_dir": str(tmp_path / "run"),
        **(flags or {}),
    }
    datasets = store if isinstance(store, list) else [str(store)]
    arguments = PretrainArguments(
        ModelArguments(**{"model": "quickstart", "model_overrides": TINY_MODEL, **model}),
        DataArguments(datasets, global_batch_tokens=tokens, **(data or {})),
        OptimizationArguments(**(optimization or {})),
        DurabilityArguments(**(durability or {})),
        ObservabilityArguments(),
        PlanArguments(**(wishes or {})),
        trainer_flags,
    )
    mixture = load_mixture(datasets, revision=None)
    check_inputs(arguments, mixture)
    found = resolve_run_config(arguments, mixture)
    claim_output_dir(found)
    return found


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        plan(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_plan(sample_store: Path, tmp_path: Path) -> None:
    good = plan(sample_store, tmp_path, flags={"max_steps": 7})
    assert good.batch.gradient_accumulation_steps == 8
    assert good.num_steps == 7
    assert (good.config.vocab_size, good.config.eos_token_id, good.config.bos_token_id) == (8192, 2, None)


def test_the_order_has_a_seed_of_its_own_if_given(sample_store: Path, tmp_path: Path) -> None:
    seeds = [plan(sample_store, tmp_path, flags={"data_seed": seed}).planned[0].order.seed for seed in (None, 7, 0)]
    assert seeds == [42, 7, 0]


def test_the_number_of_steps_follows_from_the_epochs(sample_store: Path, tmp_path: Path) -> None:
    (num_blocks,) = plan(sample_store, tmp_path).mixture.num_blocks("train")
    assert plan(sample_store, tmp_path, flags={"num_train_epochs": 2.0}).num_steps == 2 * num_blocks // 8
    assert plan(sample_store, tmp_path, data={"max_tokens": 512 * 5 + 1}).num_steps == 6


def test_the_vocabulary_is_padded_when_asked(sample_store: Path, tmp_path: Path) -> None:
    assert plan(sample_store, tmp_path, pad_vocabulary_to_multiple_of=100).config.vocab_size == 8200


def test_a_micro_step_larger_than_an_epoch(sample_store: Path, tmp_path: Path) -> None:
    flags = {"per_device_train_batch_size": 1000}
    message = refusal(sample_store, tmp_path, tokens=64 * 1000, flags=flags, wishes={"force": True})  # in any memory
    assert "use fewer processes or a smaller --per_device_train_batch_size, or preprocess more text" in message


def test_a_global_batch_that_does_not_divide(sample_store: Path, tmp_path: Path) -> None:
    message = refusal(sample_store, tmp_path, tokens=1000, flags={"per_device_train_batch_size": 4})
    assert "--global_batch_tokens 1000: is not a multiple of 256 = 64 tokens x 4 blocks" in message
    assert message.endswith("use 768 or 1024")
    assert refusal(sample_store, tmp_path, tokens=10).endswith("use 64")
    message = refusal(sample_store, tmp_path, tokens=640, flags={"per_device_train_batch_size": 4})
    assert message.endswith("use 512 or 768, or processes and --per_device_train_batch_size that divide its 10 blocks")


def test_accumulation_is_derived_or_given_not_both(sample_store: Path, tmp_path: Path) -> None:
    message = refusal(sample_store, tmp_path, flags={"gradient_accumulation_steps": 3})
    assert "add --global_batch_tokens none" in message
    given = plan(sample_store, tmp_path, tokens=None, flags={"gradient_accumulation_steps": 3})
    assert (given.batch.tokens, given.batch.gradient_accumulation_steps) == (192, 3)


def test_an_unknown_model(sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(sample_store, tmp_path, model="lama2_7b")
    assert "--model lama2_7b: not a preset (did you mean llama2_7b?)" in message


def test_overrides_are_checked_by_name(sample_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan(sample_store, tmp_path, model_overrides=["hiden_size=3", "num_hidden_layers"])
    assert caught.value.problems == (
        "--model_overrides hiden_size=3: a Llama config has no field hiden_size (did you mean hidden_size?)",
        "--model_overrides num_hidden_layers: expects field=value",
    )
    message = refusal(sample_store, tmp_path, model_overrides=["hidden_size=250"])
    assert (
        message
        == "--model quickstart: hidden_size 250 is not a multiple of num_attention_heads 4; override one of them"
    )
    message = refusal(sample_store, tmp_path, model_overrides=["num_key_value_heads=3"])
    assert "num_attention_heads 4 is not a multiple of num_key_value_heads 3" in message


def test_a_config_file_of_another_vocabulary_or_kind(sample_store: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 128}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    message = refusal(sample_store, tmp_path, model=str(path), model_overrides=[])
    assert "its vocabulary of 32,000 does not match the data set's tokenizer data/sample/tokenizer of 8,192" in message
    overridden = plan(sample_store, tmp_path, model=str(tmp_path), model_overrides=["vocab_size=8192"])
    assert overridden.config.vocab_size == 8192
    path.write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "model_type is 'gpt2'" in refusal(sample_store, tmp_path, model=str(path))
    path.write_text("{")
    assert "is not JSON" in refusal(sample_store, tmp_path, model=str(path))


def test_rope_theta_of_a_config_is_kept(sample_store: Path, tmp_path: Path) -> None:
    config = plan(sample_store, tmp_path, model_overrides=[*TINY_MODEL, "rope_theta=500000.0"]).config
    assert config.rope_parameters["rope_theta"] == 500000.0


def test_rope_theta_and_pad_token_of_an_exported_config(sample_store: Path, tmp_path: Path) -> None:
    exported = plan(sample_store, tmp_path).config.to_dict() | {"pad_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(exported))
    overridden = plan(sample_store, tmp_path, model=str(tmp_path), model_overrides=["rope_theta=500000.0"]).config
    assert overridden.rope_parameters["rope_theta"] == 500000.0
    assert overridden.pad_token_id is None, "torch never trains the embedding of a padding token, here EOS"


def test_an_epoch_smaller_than_a_step(sample_store: Path, tmp_path: Path) -> None:
    message = refusal(sample_store, tmp_path, tokens=64 * 1024)
    assert "a step of 1,024 blocks is more than the" in message


def test_a_block_longer_than_the_model_allows(sample_store: Path, tmp_path: Path) -> None:
    message = refusal(sample_store, tmp_path, model_overrides=[*TINY_MODEL, "max_position_embeddings=32"])
    assert "blocks of 64 tokens are longer than the 32 positions" in message


def test_a_ds_config_agrees_with_what_data_and_machine_decide(sample_store: Path, tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 3}, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 1}
    config |= {"gradient_accumulation_steps": 8, "bf16": {"enabled": False}, "fp16": {"enabled": False}}
    config["data_types"] = {"grad_accum_dtype": "fp32"}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    flags = {"deepspeed": str(path), "bf16": False}
    settled = plan(sample_store, tmp_path, flags=flags).ds_config
    assert (settled["train_batch_size"], settled["bf16"]) == ("auto", {"enabled": "auto"})
    path.write_text(json.dumps(config | {"train_batch_size": 16, "bf16": {"enabled": True}}))
    with pytest.raises(UserError) as caught:
        plan(sample_store, tmp_path, flags=flags)
    assert [problem.partition(", but ")[2] for problem in caught.value.problems] == [
        '--global_batch_tokens makes it 8; set it to "auto", or change the flag',
        '--bf16 makes it false; set it to "auto", or change the flag',
    ]
    assert f"--deepspeed {path}: train_batch_size is 16, but" in caught.value.problems[0]


def test_fp16_needs_a_gpu(sample_store: Path, tmp_path: Path) -> None:
    assert "--fp16: needs a GPU" in refusal(sample_store, tmp_path, flags={"fp16": True})


def test_output_dir_with_something_else(sample_store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    assert "holds something else" in refusal(sample_store, tmp_path, flags={"output_dir": str(tmp_path)})
    assert "cannot be written" in refusal(
        sample_store, tmp_path, flags={"output_dir": str(tmp_path / "thesis.txt/run")}
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text("{}")
    (tmp_path / "old/metrics.jsonl").touch()
    flags, never = {"output_dir": str(tmp_path / "old")}, {"resume": "never"}
    message = refusal(sample_store, tmp_path, flags=flags, durability=never)
    assert "already contains a run; drop --resume to resume" in message


def test_a_run_that_was_started_from_elsewhere_and_saved_nothing(sample_store: Path, tmp_path: Path) -> None:
    good = plan(sample_store, tmp_path)
    record = {"identity": asdict(run_identity(good)), "num_parameters": num_parameters(good.config)}
    (good.run_dir / "run.json").write_text(json.dumps({**record, "resumed_from": "runs/x/checkpoint-9"}, default=str))
    message = refusal(sample_store, tmp_path)
    assert "was started from runs/x/checkpoint-9 and has no checkpoint yet; pass --resume runs/x" in message
    assert "optimizer_settings.weight_decay differs" in refusal(sample_store, tmp_path, flags={"weight_decay": 0.5})


def test_a_checkpoint_that_is_none(sample_store: Path, tmp_path: Path) -> None:
    for checkpoint, expected in ((tmp_path / "none", "no such folder"), (tmp_path, "complete.json is missing")):
        message = refusal(sample_store, tmp_path, durability={"resume": str(checkpoint)})
        assert "checkpoint is incomplete" in message
        assert expected in message


def test_a_dataset_that_is_none(sample_store: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"text": "x"}')
    assert f"python3 preprocess.py --data_files {raw} --output_dir blocks" in refusal(raw, tmp_path)
    assert f"python3 preprocess.py --data_files {tmp_path} --output_dir blocks" in refusal(tmp_path, tmp_path)
    assert "not a block store" in refusal(tmp_path / "nothing", tmp_path)
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    assert "has format version 99, this program reads 2" in refusal(store, tmp_path)
    (store / "manifest.json").write_text("{}")
    assert "has format version None, this program reads 2" in refusal(store, tmp_path)
    for damaged in ("5", "null", '{"format_version": 2, "splits": []}'):
        (store / "manifest.json").write_text(damaged)
        assert "is damaged" in refusal(store, tmp_path)


def test_blocks_of_another_tokenizer(sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    path = store / "tokenizer/tokenizer.json"
    path.write_text(path.read_text().replace('"Ġthe"', '"Ġeht"'))
    assert "not the one that made the blocks" in refusal(store, tmp_path)
    shutil.copy(sample_store / "tokenizer/tokenizer.json", path)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["origin"]["tokenizer"]["canary_ids"][0] += 1
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert "gives other ids for the canary text" in refusal(store, tmp_path)


def test_a_split_without_blocks_is_an_error_or_a_warning(
    sample_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["splits"]["validation"] |= {"num_blocks": 0, "num_tokens": 0, "num_tail_tokens": 0, "shards": []}
    (store / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    plan(store, tmp_path)
    assert "validation has no block, so nothing is evaluated during training" in caplog.text
    manifest["splits"]["train"] |= {"num_blocks": 0, "num_tokens": 0, "num_tail_tokens": 0, "shards": []}
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert "train has no block of 64 tokens" in refusal(store, tmp_path)


def test_each_step_is_announced_with_one_learning_rate(
    sample_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def announced(warmup_steps: float) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            log_run_config(plan(sample_store, tmp_path, flags={"max_steps": 6, "warmup_steps": warmup_steps}))
        return "\n".join(record.getMessage() for record in caplog.records)

    def announced_of(schedule: Schedule) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            log_run_config(replace(plan(sample_store, tmp_path, flags={"max_steps": 6}), schedule=schedule))
        return "\n".join(record.getMessage() for record in caplog.records)

    later = Schedule("linear", 1e-4, 0.0, warmup_steps=0, decay_steps=1, num_steps=6, first_step=3, initial=1e-4)
    cut = Schedule("cosine", 3e-4, 3e-5, warmup_steps=5, decay_steps=1, num_steps=3, later=(later,))
    assert "learning rate: 6.00e-05 at step 1, warmup, then linear to 0.00e+00" in announced_of(cut)
    reached = replace(cut, warmup_steps=2)
    assert "1.50e-04 at step 1, 3.00e-04 at step 2, cosine, then linear to 0.00e+00" in announced_of(reached)
    assert "learning rate: 2.82e-04 at step 1, cosine to 3.00e-05" in announced(0)
    assert "learning rate: 3.00e-04 at step 1, cosine to 3.00e-05" in announced(1)
    assert "learning rate: 1.50e-04 at step 1, 3.00e-04 at step 2, cosine to 3.00e-05" in announced(2)
    assert "the learning rate ends at 1.80e-06, on its way up to --learning_rate 3.00e-04" in announced(1000)


def test_phases_need_steps_of_one_size(sample_store: Path, tmp_path: Path) -> None:
    """Shares are of steps: after steps of another size, they would not be those of the tokens."""
    found = plan(sample_store, tmp_path, flags={"max_steps": 20})
    phases = [PhaseArguments("a", ["x"], 0.5), PhaseArguments("b", ["x"], 0.5)]
    arguments = replace(found.arguments, data=replace(found.arguments.data, phases=phases))
    assert resolve_phase_ends(arguments, 20, found.batch, ResumePoint(tmp_path, 10, 80)) == (10, 20)
    assert resolve_phase_ends(found.arguments, 20, found.batch, ResumePoint(tmp_path, 10, 40)) == (20,)
    with pytest.raises(UserError, match="has read 40 blocks in 10 steps, now a step has 8; the shares of phases need"):
        resolve_phase_ends(arguments, 20, found.batch, ResumePoint(tmp_path, 10, 40))


def test_what_processes_have_in_common_leaves_out_paths_and_workers(sample_store: Path, tmp_path: Path) -> None:
    def settings(name: str, **flags: Any) -> dict[str, dict[str, Any]]:
        store = shutil.copytree(sample_store, tmp_path / name / "blocks")
        return common_settings(plan(store, tmp_path / name, flags={"max_steps": 7, **flags}))

    common = settings("a")
    assert settings("b", dataloader_num_workers=2) == common
    other = settings("c", learning_rate=1e-4, per_device_train_batch_size=2)
    assert [(path, now) for path, _, now in differences(common["flags"], other["flags"])] == [
        ("--learning_rate", 1e-4),
        ("--per_device_train_batch_size", 2),
    ]
    paths = [path for path, *_ in differences(common["resolved"], other["resolved"])]
    assert {"schedule.peak", "batch.micro_batch_blocks", "batch.gradient_accumulation_steps"} <= set(paths)
