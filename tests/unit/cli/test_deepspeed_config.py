"""A DeepSpeed config passes if this suite is tested with it and it agrees with the flags; else one line says why."""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.deepspeed_config import load_ds_config
from pretraining.cli.deepspeed_keys import ACCEPTED, REJECTED
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR, run

ZERO = {"stage": 3}
LOWER = {"stage": 2}
# What people bring from Megatron-DeepSpeed's examples.
MEGATRON = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "steps_per_print": 1,
    "zero_optimization": {
        "stage": 3,
        "cpu_offload": True,
        "stage3_max_live_parameters": 3e9,
        "stage3_max_reuse_distance": 3e9,
        "stage3_param_persistence_threshold": 1e5,
        "stage3_prefetch_bucket_size": 5e7,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": 90000000,
        "sub_group_size": 1e9,
    },
    "gradient_clipping": 1.0,
    "prescale_gradients": False,
    "zero_allow_untested_optimizer": False,
    "fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 500, "hysteresis": 2, "min_loss_scale": 1},
    "wall_clock_breakdown": True,
}


def problems_of(config: Any, tmp_path: Path, *flags: str) -> list[str]:
    """What the stage of flags says, without the file's name."""
    path = tmp_path / "ds.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    try:
        parse_pretrain_arguments("", ["--deepspeed", str(path), *flags])
    except UserError as error:
        return [problem.removeprefix(f"--deepspeed {path}: ") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "is not JSON"),
        ('{"fp16": {}, "fp16": {}}', "is not JSON (fp16 is there twice)"),
        ("[]", "zero_optimization.stage is missing; set it to 3, which shards the weights too, or to 1 or 2"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0; set it to 1 or 2 or 3, stage 0 shards no"),
        ({"zero_optimization": {"stage": "2"}}, 'zero_optimization.stage is "2"; expects a whole number'),
        ({"zero_optimization": {**LOWER, "overlap_comm": True}}, "overlap_comm is true with stage 2 (below stage 3"),
        ({"zero_optimization": {**LOWER, "allgather_bucket_size": 5}}, "is 5; use an even number for stage 2"),
        ({"zero_optimization": {**LOWER, "round_robin_gradients": True}}, "round_robin_gradients is true with stage 2"),
        ({"zero_optimization": LOWER, "compile": {"deepcompile": True}}, "deepcompile is true with stage 2 (it is not"),
        (
            {"zero_optimization": {**LOWER, "stage3_max_live_parameters": 1, "offload_param": {"device": "cpu"}}},
            "stage3_max_live_parameters, offload_param belong to stage 3, and the stage is 2; remove them",
        ),
        ({"zero_optimization": {**LOWER, "sub_group_size": 1e9}}, "sub_group_size belongs to stage 3, and the stage"),
        (
            {"zero_optimization": {**LOWER, "offload_optimizer": {"device": "nvme", "nvme_path": "/disk"}}},
            "offload_optimizer.device is nvme, which needs stage 3, not 2; set it to cpu",
        ),
        ({"optimizer": {"type": "Adam"}}, "optimizer is not accepted (--optim, --learning_rate, --weight_decay and"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast is not accepted (--bf16 and --fp16 decide it)"),
        ({"gradient_clipping": 2}, "gradient_clipping is 2, but --max_grad_norm makes it 1.0; set it to \"auto\""),
        ({"train_micro_batch_size_per_gpu": 4}, "is 4, but --per_device_train_batch_size makes it 1"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but --fp16 makes it false; set it to \"auto\""),
        ({"bf16": True}, 'bf16 is true; expects an object such as {"enabled": ...}'),
        ({"fp16": {"enabled": 1}}, "fp16.enabled is 1; expects true or false or auto"),
        ({"fp16": {"loss_scale": -1}}, "fp16.loss_scale is -1; give 0 or more"),
        ({"fp16": {"loss_scale": float("inf")}}, "fp16.loss_scale is Infinity; give 0 or more"),
        ({"zero_optimization": {**ZERO, "offload_optimizer": "cpu"}}, "zero_optimization.offload_optimizer is \"cpu\""),
        ({"zero_optimization": {**ZERO, "offload_param": {"device": "gpu"}}}, "set it to none or cpu or nvme"),
        ({"zero_optimization": {**ZERO, "offload_param": {"device": "nvme"}}}, "nvme_path is missing; set it to"),
        ({"zero_optimization": {**ZERO, "offload_optimizer": {"ratio": 0.8}}}, "ratio is 0.8; set it to 1, what stays"),
        ({"zero_optimization": {**ZERO, "overlap_comm": "auto"}}, "overlap_comm is \"auto\"; expects true or false"),
        ({"zero_optimization": {**ZERO, "sub_group_size": 0.5}}, "sub_group_size is 0.5; expects a whole number"),
        ({"zero_optimization": {**ZERO, "ovelap_comm": True}}, "no such key (did you mean overlap_comm?)"),
        ({"zero_optimization": {**ZERO, "zenflw": True}}, "DeepSpeed has no such key (did you mean zenflow?)"),
        ({"zero_optimization": {**ZERO, "stage3_gather_16bit_weights_on_model_save": False}}, "model needs it"),
        ({"zero_optimization": {**ZERO, "zero_quantized_gradients": True}}, "it sends rounded weights or gradients"),
        ({"zero_optimization": {**ZERO, "zero_hpz_partition_size": -1}}, "hpz_partition_size is -1; give 0 or more"),
        ({"zero_optimization": {**LOWER, "zero_hpz_partition_size": 8}}, "zero_hpz_partition_size belongs to stage 3"),
        ({"checkpoint": {"use_node_local_storage": True}}, "checkpoint is not accepted"),
        ({"wandb": {"enabled": True}}, "wandb is not accepted (use --report_to"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel is not accepted"),
        ({"data_types": {"grad_accum_dtype": "int8"}}, "grad_accum_dtype is \"int8\"; set it to fp32 or bf16 or fp16"),
    ],
)  # fmt: skip
def test_what_this_suite_is_not_tested_with_is_rejected(config: Any, expected: str, tmp_path: Path) -> None:
    if isinstance(config, dict):
        config = {"zero_optimization": ZERO, **config}
    (problem,) = problems_of(config, tmp_path)
    assert expected in problem


def test_every_problem_of_flags_and_file_is_told_at_once_and_before_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {**ZERO, "a": 1}, "amp": {"enabled": True}}))
    code = "import sys, pretrain, pretraining.cli.program as program\n"
    seen = "'torch' in sys.modules, 'deepspeed' in sys.modules"
    code += f"program.exit_process = lambda code: print({seen}) or sys.exit(code)\n"
    code += "program.run_program(pretrain.main)"
    flags = ["--deepspeed", path, "--hub_model_id", "a/b", "--push_to_hub", "false"]
    done = run(sys.executable, "-c", code, *flags)
    assert (done.returncode, done.stdout) == (2, "False False\n")
    assert [error.split(": ")[1] for error in done.errors] == [
        "--hub_model_id a/b --push_to_hub false", f"--deepspeed {path}", f"--deepspeed {path}",
    ]  # fmt: skip


def test_what_agrees_with_the_flags_or_asks_for_nothing_passes(tmp_path: Path) -> None:
    flags = ["--per_device_train_batch_size", "2", "--fp16"]
    assert problems_of(MEGATRON, tmp_path, *flags) == []
    assert problems_of(MEGATRON, tmp_path, *flags, "--max_grad_norm", "0.5") == [
        'gradient_clipping is 1.0, but --max_grad_norm makes it 0.5; set it to "auto", or change the flag'
    ]
    idle = {"wandb": {"enabled": False}, "activation_checkpointing": {"cpu_checkpointing": False}, "elasticity": None}
    idle |= {"bf16": {"enabled": False}, "gradient_allreduce_op": "mean", "communication_data_type": None}
    assert problems_of({"zero_optimization": {**ZERO, "zenflow": None}, **idle}, tmp_path, "--bf16", "false") == []
    assert load_ds_config(str(tmp_path / "ds.json")).keys() & idle.keys() == {"bf16"}, "DeepSpeed refuses some by name"
    lower = {"cpu_offload": True, "allgather_partitions": True, "allgather_bucket_size": 5e8, "reduce_scatter": True}
    lower |= {"overlap_comm": False, "contiguous_gradients": True, "round_robin_gradients": False}
    for stage in (1, 2):
        assert problems_of({"zero_optimization": {"stage": stage, **lower}}, tmp_path) == []
    fixed = {"zero_optimization": ZERO, "train_batch_size": 8}
    assert problems_of(fixed, tmp_path, "--per_device_train_batch_size", "auto") == [
        'train_batch_size is 8; set it to "auto" for --per_device_train_batch_size auto'
    ]


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"fp16": {"enabled": True}}, ["--fp16"]),
        ({"gradient_clipping": 1.0}, []),
        ({"gradient_clipping": 1}, ["--max_grad_norm", "1.0"]),
        ({"bf16": {"enabled": False}}, ["--bf16", "false"]),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, ["--fp16"]),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, ["--bf16"]),
    ],
)
def test_one_value_that_agrees_with_its_flag_is_accepted(config: Any, flags: list[str], tmp_path: Path) -> None:
    assert problems_of({"zero_optimization": ZERO, **config}, tmp_path, *flags) == []


def test_the_timer_of_deepspeed_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    for timers, expected in (({}, False), ({"throughput": {}}, False), ({"throughput": {"enabled": True}}, True)):
        path.write_text(json.dumps({"zero_optimization": ZERO, "timers": timers}))
        assert load_ds_config(str(path))["timers"]["throughput"]["enabled"] is expected
    path.write_text(json.dumps({"zero_optimization": ZERO}))
    assert load_ds_config(str(path))["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize("path", sorted(PROJECT_DIR.glob("ds_config*.json")), ids=lambda path: path.name)
def test_our_own_configs_are_taken_as_they_are(path: Path) -> None:
    assert load_ds_config(str(path)) == json.loads(path.read_text())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_our_own_configs_differ_in_what_they_offload_alone(stage: int) -> None:
    infix = "" if stage == 3 else f"_zero{stage}"
    endings = ["", "_offload_optimizer", "_offload"] if stage == 3 else ["", "_offload_optimizer"]
    plain, *others = (json.loads((PROJECT_DIR / f"ds_config{infix}{ending}.json").read_text()) for ending in endings)
    assert plain["zero_optimization"]["stage"] == stage
    offloaded = [{name for name in other["zero_optimization"] if name.startswith("offload_")} for other in others]
    assert offloaded == [{"offload_optimizer"}, {"offload_optimizer", "offload_param"}][: len(others)]
    for other, names in zip(others, offloaded, strict=True):
        assert {name: other["zero_optimization"].pop(name)["device"] for name in names} == dict.fromkeys(names, "cpu")
        assert other == plain


def test_our_own_configs_differ_in_zero_alone() -> None:
    stages = [json.loads((PROJECT_DIR / f"ds_config{name}.json").read_text()) for name in ("", "_zero1", "_zero2")]
    assert [config["bf16"].pop("immediate_grad_update", None) for config in stages] == [None, True, None]
    assert [config.pop("zero_optimization")["overlap_comm"] for config in stages] == [True, False, False]
    assert stages[0] == stages[1] == stages[2]


def test_muon_needs_whole_matrices(tmp_path: Path) -> None:
    (problem,) = problems_of({"zero_optimization": LOWER}, tmp_path, "--optim", "muon")
    assert "its ZeRO stage is 2, whose partitions cut matrices anywhere, and muon needs whole ones; use" in problem
    assert problems_of({"zero_optimization": ZERO}, tmp_path, "--optim", "muon") == []


def test_old_spellings_are_brought_up_to_date(tmp_path: Path) -> None:
    old = {"cpu_offload": True, "cpu_offload_param": False, "cpu_offload_use_pin_memory": False}
    config = {"zero_optimization": {**ZERO, **old, "stage3_gather_fp16_weights_on_model_save": True}, "bfloat16": {}}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    found = load_ds_config(str(tmp_path / "ds.json"))
    assert found["bf16"] == {"enabled": "auto"}
    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    assert found["zero_optimization"] == {**ZERO, **offload, **gathers}


def test_every_key_of_the_installed_deepspeed_is_decided_on() -> None:
    """A new version brings new keys; each is to be tested or rejected, with the type that DeepSpeed gives it."""
    from deepspeed.compile.config import CompileConfig
    from deepspeed.runtime import config as module
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    old = {"cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "stage3_gather_fp16_weights_on_model_save"}
    models = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    fields = DeepSpeedZeroConfig.model_fields
    for name in ("offload_optimizer", "offload_param"):
        models[f"zero_optimization.{name}"] = next(iter(fields[name].annotation.__args__))
    for prefix, model in (models | {"compile": CompileConfig}).items():
        accepted: Any = ACCEPTED
        for name in prefix.split("."):
            accepted = accepted[name]
        keys = {field.alias or name for name, field in model.model_fields.items()} - old
        rejected = {path.removeprefix(f"{prefix}.") for path in REJECTED if path.startswith(f"{prefix}.")}
        rejected = {name for name in rejected if "." not in name}
        removed = {name for name in module._REMOVED_ZERO_CONFIG_KEYS if prefix == "zero_optimization"}
        assert keys - set(accepted) - rejected == set(), prefix
        assert (set(accepted) | rejected) - keys - removed == set(), prefix
        assert set(accepted) & rejected == set()
    source = inspect.getsource(module)
    found = re.findall(r"param_dict(?:, |\.get\(|\[)\s*([A-Z_]{4,}|['\"]\w+['\"])", source)
    names = {getattr(module, word) if word.isupper() else word.strip("'\"") for word in found}
    names |= set(module._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert len(names) > 30
    assert {name for name in names if name not in {*ACCEPTED, *REJECTED}} <= {"bfloat16", "enabled"}
