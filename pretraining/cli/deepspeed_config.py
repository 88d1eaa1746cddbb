"""Read and check a DeepSpeed config file before torch is imported; DeepSpeed's own errors come late, from every rank.

What flags decide may be "auto" in it or agree with the flags. It is "auto" from then on, so that there is one place
where the value comes from.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.cli.deepspeed_keys import (
    ACCEPTED,
    AUTO,
    BATCH_KEYS,
    OFF,
    REJECTED,
    REJECTED_BELOW_STAGE_3,
    STAGE_3_KEYS,
    Value,
)
from pretraining.errors import UserError, nearest, raise_problems

if TYPE_CHECKING:
    from pretraining.cli.arguments.pretrain import PretrainArguments

logger = logging.getLogger(__name__)

# What flags decide, by its place in the config, and the flag.
DECIDED_BY_FLAGS = {
    "gradient_clipping": "--max_grad_norm",
    "train_batch_size": "--global_batch_tokens",
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--global_batch_tokens",
    "bf16.enabled": "--bf16",
    "fp16.enabled": "--fp16",
    "data_types.grad_accum_dtype": "--grad_accum_dtype",
}
OLD_OFFLOAD_KEYS = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
OLD_PIN_KEY = "cpu_offload_use_pin_memory"
GATHER_KEY = "stage3_gather_16bit_weights_on_model_save"
OLD_GATHER_KEY = "stage3_gather_fp16_weights_on_model_save"


def load_ds_config(path_text: str | None) -> dict[str, Any]:
    """The config as a dict, with old spellings brought up to date and "auto" where flags decide and it sets nothing.

    Raises:
        UserError: when the file is missing, not JSON, or has keys or values that this suite is not tested with.
    """
    config, old_spellings = _read(path_text)
    for old, new in old_spellings:
        logger.warning('--deepspeed %s: "%s" is the old spelling of %s', path_text, old, new)
    return config


def ds_config_problems(arguments: "PretrainArguments") -> Iterator[str]:
    """What is wrong with the config, as far as the flags determine it; the rest depends on machine, model and data."""
    path_text = arguments.trainer["deepspeed"]
    if arguments.chooses_deepspeed:
        return
    try:
        config, _ = _read(path_text)
        agree_with_flags(config, _decided(arguments), path_text)
    except UserError as error:
        yield from error.problems
        return
    if arguments.optimization.optim == "muon" and zero_stage(config) < 3:
        yield (
            f"--optim muon --deepspeed {path_text}: its ZeRO stage is {zero_stage(config)}, whose partitions cut "
            "matrices anywhere, and muon needs whole ones; use ds_config.json (stage 3), or --optim adamw"
        )
    trials = "--per_device_train_batch_size auto" if arguments.finds_micro_batch else "--profile_plan"
    if arguments.finds_micro_batch or arguments.plan.profile_plan:  # which try other sizes than those of the run
        for path in BATCH_KEYS:
            if config[path] != AUTO:
                yield f'--deepspeed {path_text}: {path} is {config[path]}; set it to "auto" for {trials}'


def _decided(arguments: "PretrainArguments") -> dict[str, Any]:
    """What flags resolve to on any machine, by its place in the config."""
    trainer, grad_accum_dtype = arguments.trainer, arguments.optimization.grad_accum_dtype
    decided = {"gradient_clipping": trainer["max_grad_norm"], "fp16.enabled": bool(trainer.get("fp16"))}
    if trainer.get("fp16") or trainer["bf16"] is not None:
        decided["bf16.enabled"] = bool(trainer["bf16"])
    if not arguments.finds_micro_batch:
        decided["train_micro_batch_size_per_gpu"] = trainer["per_device_train_batch_size"]
    if grad_accum_dtype != AUTO:
        decided["data_types.grad_accum_dtype"] = grad_accum_dtype
    return decided


def _read(path_text: str | None) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The config with defaults, and each old spelling in it with the new one."""
    place = f"--deepspeed {path_text}"
    config = _read_json(path_text, place)
    old_spellings = list(_update_old_spellings(config))
    raise_problems(f"{place}: {problem}" for problem in _problems_of(config))
    if zero_stage(config) == 3:
        config["zero_optimization"].setdefault(GATHER_KEY, True)
    # DeepSpeed's default is true, and then it waits for the GPU in each micro step; this suite measures speed itself.
    config.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    for path in DECIDED_BY_FLAGS:
        section, key = _section(config, path)
        section.setdefault(key, AUTO)
    return config, old_spellings


def agree_with_flags(config: dict[str, Any], resolved: Mapping[str, Any], path_text: str | None) -> None:
    """Set "auto" for each value that is what flags resolve to; `resolved` has these values by their place.

    Raises:
        UserError: with each value that is another one.
    """
    problems = []
    for path, value in resolved.items():
        section, key = _section(config, path)
        if section[key] not in (AUTO, value):
            problems.append(
                f"--deepspeed {path_text}: {path} is {json.dumps(section[key])}, but {DECIDED_BY_FLAGS[path]} makes it "
                f'{json.dumps(value)}; set it to "auto", or change the flag'
            )
        section[key] = AUTO
    raise_problems(problems)


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a checked config: 1, 2 or 3."""
    return int(config["zero_optimization"]["stage"])


def offloads(config: Mapping[str, Any], what: str, *, to: str | None = None) -> bool:
    """Whether `what` ("optimizer" or "param") is kept in host memory or on disk; or in one of them, "cpu" or "nvme"."""
    section = config["zero_optimization"].get(f"offload_{what}") or {}
    device = section.get("device", "none")
    return device == to if to is not None else device != "none"


def _section(config: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object that a key is in, which is created where it is missing, and the key's own name."""
    parent, _, key = path.rpartition(".")
    return (config.setdefault(parent, {}) if parent else config), key


def _read_json(path_text: str | None, place: str) -> dict[str, Any]:
    if path_text is None:
        raise UserError(f"{place}: this suite trains with DeepSpeed; use ds_config.json or your own")
    try:
        config = json.loads(Path(path_text).read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); use ds_config.json or your own") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)} is there twice")
    return found


def _update_old_spellings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Replace old spellings; yields each with the new one."""
    if "bfloat16" in config:
        config.setdefault("bf16", config.pop("bfloat16"))
        yield "bfloat16", '"bf16"'
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        return
    pins = zero.pop(OLD_PIN_KEY, True) is not False
    for old, new in OLD_OFFLOAD_KEYS.items():
        if old in zero:
            if zero.pop(old):
                zero.setdefault(new, {"device": "cpu", "pin_memory": pins})
            yield old, f'"{new}": {{"device": "cpu"}}'
    if OLD_GATHER_KEY in zero:
        zero.setdefault(GATHER_KEY, zero.pop(OLD_GATHER_KEY))
        yield OLD_GATHER_KEY, f'"{GATHER_KEY}"'


def _problems_of(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with keys and values; what is rejected and switched off is dropped."""
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or "stage" not in zero:
        yield "zero_optimization.stage is missing; set it to 3, which shards the weights too, or to 1 or 2"
    yield from _section_problems(config, ACCEPTED, "")
    for name in OLD_OFFLOAD_KEYS.values():
        section = zero.get(name) if isinstance(zero, dict) else None
        if isinstance(section, dict) and section.get("device") == "nvme" and not section.get("nvme_path"):
            yield f"zero_optimization.{name}.nvme_path is missing; set it to a folder on the disk to offload to"
    if isinstance(zero, dict) and zero.get("stage") in (1, 2):
        yield from _lower_stage_problems(config, zero)


def _lower_stage_problems(config: dict[str, Any], zero: dict[str, Any]) -> Iterator[str]:
    """What only stage 3 has, or only there is safe."""
    stage = zero["stage"]
    if names := [name for name in zero if name.startswith(STAGE_3_KEYS)]:
        verb, them = ("belongs", "it") if len(names) == 1 else ("belong", "them")
        yield f"zero_optimization: {', '.join(names)} {verb} to stage 3, and the stage is {stage}; remove {them}"
    for path, reason in REJECTED_BELOW_STAGE_3.items():
        section = config.get(path.partition(".")[0])
        if isinstance(section, dict) and section.get(path.partition(".")[2]) is True:
            yield f"{path} is true with stage {stage} ({reason}); set it to false"
    size = zero.get("allgather_bucket_size", 2)
    if isinstance(size, int | float) and size % 2:
        yield f"zero_optimization.allgather_bucket_size is {size}; use an even number for stage {stage}"
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and offload.get("device") == "nvme":
        yield f"zero_optimization.offload_optimizer.device is nvme, which needs stage 3, not {stage}; set it to cpu"


def _section_problems(section: dict[str, Any], accepted: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in list(section.items()):
        path = prefix + name
        if path in REJECTED and not _is_off(value, OFF.get(path, ())):
            yield f"{path} is not accepted ({REJECTED[path]}); remove it"
        elif path not in REJECTED and name not in accepted:
            known = [*accepted, *(one.removeprefix(prefix) for one in REJECTED if one.startswith(prefix))]
            yield f"{path}: DeepSpeed has no such key{nearest(name, known)}; remove it"
        elif path in REJECTED or value is None:
            del section[name]
        else:
            yield from _value_problems(path, value, accepted[name])


def _value_problems(path: str, value: Any, expected: Any) -> Iterator[str]:
    """What is wrong with the value of an accepted key, which can be a section."""
    if isinstance(expected, Value):
        problem = expected.problem(value)
        if problem is not None:
            yield f"{path} is {json.dumps(value)}; {problem}"
    elif isinstance(value, dict):
        yield from _section_problems(value, expected, f"{path}.")
    else:
        yield f'{path} is {json.dumps(value)}; expects an object such as {{"{next(iter(expected))}": ...}}'


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    """Whether a value of a rejected key asks for nothing."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(_is_off(inner, ()) for inner in value.values())
    return value is None or value is False or value in off
