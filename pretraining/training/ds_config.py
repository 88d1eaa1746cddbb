"""Read and check a DeepSpeed config file before DeepSpeed does, whose own errors come late and from every rank."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from pretraining.cli.errors import UserError

logger = logging.getLogger(__name__)

# What flags of pretrain.py decide. DeepSpeed's own AdamW would put weight decay on the norms and compile a C++ op, its
# WarmupDecayLR starts at a learning rate of 0 and ends at 0.
DECIDED_BY_FLAGS = ("optimizer", "scheduler")
OLD_OFFLOAD_KEYS = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}


def load_ds_config(path_text: str, *, has_gpu: bool) -> dict[str, Any]:
    """The config as a dict, old spellings brought up to date.

    Raises:
        UserError: when the file is missing, not JSON, not ZeRO-3, or sets what flags decide.
    """
    place = f"--deepspeed {path_text}"
    try:
        config = json.loads(Path(path_text).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); give ds_config.json or your own") from None
    except ValueError as error:
        raise UserError(f"{place}: is not JSON ({error})") from None
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if zero is None or stage != 3:
        raise UserError(f"{place}: zero_optimization.stage is {stage!r}; this suite trains with ZeRO-3, set it to 3")
    decided = [key for key in DECIDED_BY_FLAGS if key in config]
    if decided:
        raise UserError(f"{place}: sets {' and '.join(decided)}; remove that, flags such as --learning_rate decide it")
    _update_old_spellings(zero, place)
    if offloads(config, "optimizer"):
        config.setdefault("zero_force_ds_cpu_optimizer", _can_compile_cpu_adam(has_gpu))
    return config


def offloads(config: dict[str, Any], what: str) -> bool:
    """Whether `what` ("optimizer" or "param") is kept in host memory or on disk."""
    section = config["zero_optimization"].get(f"offload_{what}") or {}
    return section.get("device", "none") != "none"


def _update_old_spellings(zero: dict[str, Any], place: str) -> None:
    for old, new in OLD_OFFLOAD_KEYS.items():
        if old in zero:
            asked = zero.pop(old)
            logger.warning('%s: "%s" is the old spelling of "%s": {"device": "cpu"}', place, old, new)
            if asked:
                zero.setdefault(new, {"device": "cpu", "pin_memory": True})


def _can_compile_cpu_adam(has_gpu: bool) -> bool:
    """Whether to use DeepSpeed's CPU Adam, compiled once on first use (75 s); otherwise torch's AdamW does the same."""
    usable = has_gpu and shutil.which("c++") is not None and shutil.which("nvcc") is not None
    logger.info("offloaded optimizer: %s", "DeepSpeedCPUAdam" if usable else "torch AdamW (no C++ op is compiled)")
    return usable
