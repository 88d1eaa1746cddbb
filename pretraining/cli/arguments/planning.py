"""The flags of pretrain.py about the plan: what a run needs and takes, said before it starts."""

import re
from dataclasses import dataclass

from pretraining.cli.flags import check_all, flag
from pretraining.errors import shortened

MEMORY_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT]I?B)", re.IGNORECASE)
UNIT_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class PlanArguments:
    """What is planned, for which machine, and whether its verdict counts."""

    dry_run: bool = flag(False, "say what the run needs and takes, and start nothing; works on any machine")
    profile_plan: bool = flag(False, "run a few steps into a folder that is removed, and say predicted beside measured")
    num_gpus: int | None = flag(None, "GPUs to plan for; those of this machine without it")
    gpu_type: str | None = flag(None, "kind of GPU to plan for, as h200, h100, a100_40gb, rtx_4090")
    host_memory: str | None = flag(None, "host memory to plan for, as 512GB or 1TB")
    assumed_mfu: float = flag(0.4, "MFU (full attention) from which time and energy are planned until it is measured")
    price_per_gpu_hour: float | None = flag(None, "price of a GPU for an hour, in any currency")
    force: bool = flag(False, "start although the plan says that the run does not fit")

    @property
    def host_bytes(self) -> int | None:
        """--host_memory in bytes."""
        match = MEMORY_TEXT.fullmatch(self.host_memory or "")
        return None if match is None else int(float(match[1]) * UNIT_BYTES[match[2].upper()])

    @property
    def starts_nothing(self) -> bool:
        """Whether no training of its own comes of it."""
        return self.dry_run or self.profile_plan

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        host_memory = shortened(self.host_memory or "")
        check_all(
            {
                f"--host_memory {host_memory}: is not a size; use e.g. 512GB or 1TB": not host_memory
                or self.host_bytes is not None,
                "--dry_run --profile_plan: exclude each other; keep one": not (self.dry_run and self.profile_plan),
                f"--{self._for_another_machine}: describes another machine, for --dry_run; leave it out": self.dry_run
                or not self._for_another_machine,
            }
        )

    @property
    def _for_another_machine(self) -> str:
        """The first flag, if one was given, that a start on this machine would do nothing with."""
        names = ("num_gpus", "gpu_type", "host_memory")
        return next((name for name in names if getattr(self, name) is not None), "")
