"""Read and check a DeepSpeed config file before DeepSpeed does, whose own errors come late and from every rank."""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretraining.cli.errors import UserError

logger = logging.getLogger(__name__)

# DeepSpeed's own AdamW would put weight decay on the norms and compile a C++ op; its WarmupDecayLR starts and ends at a
# learning rate of 0.
REFUSED_SECTIONS = {
    "optimizer": "--learning_rate, --weight_decay and --adam_beta2",
    "scheduler": "--lr_scheduler_type",
    "torch_autocast": "--bf16 and --fp16",  # weights would stay in fp32, and a tile be computed again without it
}
# What flags decide must be "auto", or the flag would be ignored without a word.
DECIDED_BY_FLAGS = {
    "gradient_clipping": "--max_grad_norm",
    "train_batch_size": "--global_batch_tokens",
    "train_micro_batch_size_per_gpu": "--per_device_train_batch_size",
    "gradient_accumulation_steps": "--global_batch_tokens",
}
OLD_OFFLOAD_KEYS = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
# What transformers takes from the model where the config says "auto"; elsewhere DeepSpeed would fail on the word.
AUTO_FROM_MODEL = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
OFFLOAD_TO_CPU = {"device": "cpu", "pin_memory": True}
GATHER_KEY = "stage3_gather_16bit_weights_on_model_save"


def load_ds_config(path_text: str | None) -> dict[str, Any]:
    """The config as a dict, with old spellings brought up to date and "auto" where flags decide.

    Raises:
        UserError: when the file is missing, not JSON, not ZeRO-3, has a value that DeepSpeed refuses, or sets what
            flags decide.
    """
    place = f"--deepspeed {path_text}"
    config = _read_json(path_text, place)
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or stage != 3:
        raise UserError(f"{place}: zero_optimization.stage is {stage!r}; this suite trains with ZeRO-3, set it to 3")
    _update_old_spellings(zero, place)
    problems = [*_refused_sections(config), *_refused_values(config), *_zero_problems(zero)]
    if problems:
        raise UserError(*(f"{place}: {problem}" for problem in problems))
    return config


def offloads(config: dict[str, Any], what: str, *, to: str | None = None) -> bool:
    """Whether `what` ("optimizer" or "param") is kept in host memory or on disk; or in one of them, "cpu" or "nvme"."""
    section = config["zero_optimization"].get(f"offload_{what}") or {}
    device = section.get("device", "none")
    return device == to if to is not None else device != "none"


def _read_json(path_text: str | None, place: str) -> dict[str, Any]:
    if path_text is None:
        raise UserError(f"{place}: this suite trains with DeepSpeed; give ds_config.json or your own")
    try:
        config = json.loads(Path(path_text).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); give ds_config.json or your own") from None
    except ValueError as error:
        raise UserError(f"{place}: is not JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _update_old_spellings(zero: dict[str, Any], place: str) -> None:
    for old, new in OLD_OFFLOAD_KEYS.items():
        if old in zero:
            asked = zero.pop(old)
            logger.warning('%s: "%s" is the old spelling of "%s": {"device": "cpu"}', place, old, new)
            if asked:
                zero.setdefault(new, dict(OFFLOAD_TO_CPU))


def _refused_sections(config: dict[str, Any]) -> list[str]:
    return [
        f"sets {name}; remove that, {flags} decide it" for name, flags in REFUSED_SECTIONS.items() if name in config
    ]


def _refused_values(config: dict[str, Any]) -> list[str]:
    problems = []
    for key, flag in DECIDED_BY_FLAGS.items():
        if config.setdefault(key, "auto") != "auto":
            problems.append(f'{key} is {config[key]!r}; set it to "auto", {flag} decides it')
    for key in ("bf16", "fp16"):
        section = config.setdefault(key, {"enabled": "auto"})
        if not isinstance(section, dict) or section.get("enabled") != "auto":
            problems.append(f'{key} is {section!r}; set its "enabled" to "auto", --{key} decides it')
    types = config.setdefault("data_types", {})
    if not isinstance(types, dict) or types.setdefault("grad_accum_dtype", "auto") != "auto":
        problems.append(f'data_types is {types!r}; set its grad_accum_dtype to "auto", --grad_accum_dtype decides it')
    return problems


def _zero_problems(zero: dict[str, Any]) -> list[str]:
    if not zero.setdefault(GATHER_KEY, True):
        return [f"zero_optimization.{GATHER_KEY} is false; set it to true, the exported model needs it"]
    words = [key for key, value in zero.items() if value == "auto" and key not in AUTO_FROM_MODEL]
    if words:
        return [f'zero_optimization.{key} is "auto"; give a number, or remove it' for key in words]
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # after processes.py, which names its accelerator

    try:
        DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if value != "auto"})
    except ValidationError as error:
        places = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
        return [f"zero_optimization.{key}: {message}" for key, message in places]
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1)
    if ratio != 1:
        # stage3.py's backup optimizer: made once from the first group's settings, and in no checkpoint.
        return [
            f"zero_optimization.offload_optimizer.ratio is {ratio}; set it to 1, what stays on the GPU would train at "
            "the first step's learning rate for ever"
        ]
    return []
