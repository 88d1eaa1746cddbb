"""The flags of every program that trains: optimizer, checkpoints and stops, monitoring, plan."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretraining.cli.arguments.preprocess import LICENSE
from pretraining.cli.arguments.trainer import AUTO, trainer_group
from pretraining.cli.flags import check_all, flag
from pretraining.cli.parallelism import MACHINES
from pretraining.cli.recipe import FlagGroup, dataclass_group
from pretraining.errors import UserError, shortened

OptimizerName = Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"]
# What may differ from the run that is resumed, on request.
CHANGEABLE = (
    "data",
    "tokenizer_sha256",
    "model_config",
    "global_batch_tokens",
    "seed",
    "order_seed",
    "document_masking",
    "ignore_first_token",
    "precision",
    "optimizer_settings",
    "initial_weights",
    "product_precision",
    "schedule",
)
MEMORY_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT]I?B)", re.IGNORECASE)
PROFILED_STEPS = re.compile(r"([1-9]\d{0,8})(?::([1-9]\d{0,5}))?")
MIN_GPU_LIMIT_GB = 3  # of which CUDA's context and NCCL take most
# Flags that describe the machine of a plan, and what to do where there is none.
OF_ANOTHER_MACHINE = {
    "num_gpus": "remove it",
    "num_nodes": MACHINES,
    "gpu_type": "remove it",
    "host_memory": "remove it",
}
UNIT_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class KernelArguments:
    """How the layers compute."""

    attention_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] = flag(
        "sdpa", "attention kernel; sdpa is flash attention where torch has it"
    )
    loss_tiles: int | None = flag(None, "number of tiles for logits and loss (less memory)")
    mlp_tiles: int | None = flag(None, "number of tiles for each MLP and norm (less memory, more time)")
    compile_layers: bool | None = flag(
        None,
        "torch.compile each layer: up to a minute at the start, then less time and memory per step; unless set, "
        "pretrain.py compiles long runs on a CPU that has a C++ compiler",
    )


@dataclass(frozen=True)
class OptimizationArguments:
    """Schedule, optimizer, gradient accumulation, and what a loss spike leads to."""

    lr_scheduler_type: Literal["cosine", "wsd", "linear", "constant"] = flag(
        "cosine", "schedule after warmup; wsd: constant, then decay over the last --decay_steps"
    )
    min_learning_rate: float | None = flag(None, "final learning rate; none: a tenth of --learning_rate")
    decay_steps: float = flag(0.1, "steps of wsd's decay; below 1 a share of the run, or of --schedule_steps")
    schedule_steps: int | None = flag(
        None, "steps of the whole schedule, which a run may end before or outlast; none: the steps of the run"
    )
    optim: OptimizerName = flag(
        "adamw",
        "optimizer; adamw_bf16: moments in bf16; adamw_8bit: in 8 bits (needs bitsandbytes); muon: Muon for the "
        "matrices of the layers, AdamW for the rest",
    )
    weight_decay_on_norms: bool = flag(False, "apply weight decay to norms and biases, too")
    grad_accum_dtype: Literal["auto", "fp32", "bf16"] = flag(
        "auto", "gradient accumulation dtype; auto: fp32, but bf16 if only that fits or the optimizer is offloaded"
    )
    on_spike: Literal["warn", "rollback"] = flag(
        "warn", "rollback: reload the last checkpoint and skip the blocks of a loss spike, or of a NaN in the weights"
    )
    spike_threshold: float = flag(8.0, "robust z-score (last 128 steps) above which a loss is a spike")
    max_rollbacks: int = flag(3, "rollbacks after which the run stops")


@dataclass(frozen=True)
class DurabilityArguments:
    """How a run resumes, exports and stops."""

    resume: str = flag(
        "auto",
        "auto: from the newest complete checkpoint of the run folder, if there is one; never: reject a folder that "
        "contains a run; or a checkpoint",
    )
    allow_changed: list[str] = flag([], "what may differ from the run that is resumed, e.g. schedule data")
    export_every_tokens: int | None = flag(None, "export a model every N tokens")
    export: bool = flag(True, "export the model at the end")
    target_loss: float | None = flag(
        None, "end the run once the mean loss of the last 50 steps is below X; exit code 3 if it never is"
    )
    max_hours: float | None = flag(None, "save and stop so that the run ends within N hours")
    hang_timeout_minutes: float = flag(
        30.0, "abort with stack traces of all processes after N minutes without progress; 0 disables"
    )

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        names = ", ".join(CHANGEABLE)
        check_all({f"--allow_changed {name}: is not one of {names}": name in CHANGEABLE for name in self.allow_changed})


@dataclass(frozen=True)
class ObservabilityArguments:
    """What is written for people to read, in addition to the metrics of each step."""

    eval_blocks: int | None = flag(
        None, "validation blocks of an evaluation during the training, evenly spread; none: all, as after the last step"
    )
    sample_steps: int | None = flag(None, "complete --sample_prompts every N steps, and keep the texts")
    sample_prompts: list[str] = flag(["The", "I wanna go"], "prompts of the samples", is_text=True)
    sample_tokens: int = flag(48, "tokens of each sample")
    eval_tasks: list[str] = flag(
        [],
        "downstream tasks to score at each evaluation: FILE or NAME=FILE of JSON lines, or a task of lm-evaluation-"
        "harness by its name or YAML file",
    )
    report: bool = flag(True, "write report.html and curves at each evaluation and at the end")
    profile: str | None = flag(
        None, "STEP or STEP:COUNT: write a trace of COUNT steps from STEP on, and their largest costs"
    )
    license: str | None = flag(None, "license of the model for its card, as the Hub spells it, e.g. apache-2.0")

    @property
    def profiled_steps(self) -> range | None:
        """The steps of --profile, at least one; None without."""
        match = PROFILED_STEPS.fullmatch(self.profile or "")
        return None if match is None else range(int(match[1]), int(match[1]) + int(match[2] or 1))

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                f"--profile {shortened(self.profile or '')}: is not STEP or STEP:COUNT; use e.g. 10 or 10:2": (
                    self.profile is None or self.profiled_steps is not None
                ),
                "--sample_prompts: one of them is empty; pass a text": all(self.sample_prompts),
                f"--license {self.license}: is not a license of the Hub; use e.g. apache-2.0 or other": (
                    self.license is None or bool(LICENSE.fullmatch(self.license))
                ),
            }
        )


@dataclass(frozen=True)
class PlanArguments:
    """What is estimated, for which machine, and whether the estimate can reject a run."""

    dry_run: bool = flag(False, "print memory, time and cost estimates, then exit; works on any machine")
    profile_plan: bool = flag(False, "run a few steps, print predicted vs measured, then exit")
    num_gpus: int | None = flag(
        None, "GPUs to plan for, with --num_nodes those of each machine; none: those of this machine"
    )
    num_nodes: int | None = flag(None, "machines to plan for, each with --num_gpus")
    gpu_type: str | None = flag(None, "GPU to plan for, e.g. h200, h100, a100_40gb or rtx_4090")
    gpu_memory_limit: str | None = flag(
        None, "memory that a run may take of each GPU, planned and enforced, e.g. 20GB; without a GPU only planned"
    )
    host_memory: str | None = flag(None, "host memory to plan for, e.g. 512GB or 1TB")
    assumed_hfu: float = flag(0.4, "share of its peak at which a GPU computes (hardware FLOPs utilization)")
    assumed_network_gbits: float = flag(400.0, "network of each of several machines in Gbit/s, of which all is used")
    price_per_gpu_hour: float | None = flag(None, "price of a GPU per hour, in any currency")
    force: bool = flag(False, "start even if the run is predicted not to fit, or --weights predict the blocks badly")

    @property
    def host_bytes(self) -> int | None:
        """--host_memory in bytes."""
        return _bytes_of(self.host_memory)

    @property
    def gpu_limit_bytes(self) -> int | None:
        """--gpu_memory_limit in bytes."""
        return _bytes_of(self.gpu_memory_limit)

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        host_memory, limit = shortened(self.host_memory or ""), shortened(self.gpu_memory_limit or "")
        check_all(
            {
                f"--host_memory {host_memory}: is not a size; use e.g. 512GB or 1TB": (
                    not host_memory or self.host_bytes is not None
                ),
                f"--gpu_memory_limit {limit}: is not a size above {MIN_GPU_LIMIT_GB}GB; use e.g. 20GB": (
                    not limit or (self.gpu_limit_bytes or 0) > MIN_GPU_LIMIT_GB * UNIT_BYTES["GB"]
                ),
                "--dry_run --profile_plan: exclude each other; keep one": not (self.dry_run and self.profile_plan),
            }
            | {
                f"--{name}: describes another machine, for --dry_run; {remedy}": (
                    self.dry_run or getattr(self, name) is None
                )
                for name, remedy in OF_ANOTHER_MACHINE.items()
            }
        )


def _leave_open(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """With --deepspeed auto, a micro batch that was not given, or as none, is None: the plan chooses it.

    Raises:
        UserError: when trials are to find it, of a config that is not chosen yet.
    """
    if values["deepspeed"] != AUTO:
        return {**values, "per_device_train_batch_size": values["per_device_train_batch_size"] or 1}
    if given.get("per_device_train_batch_size") == AUTO:
        raise UserError("--deepspeed auto --per_device_train_batch_size auto: the former plans both; remove the latter")
    return {**values, "per_device_train_batch_size": given.get("per_device_train_batch_size")}


def _bytes_of(size: str | None) -> int | None:
    """A size such as 20GB in bytes; None of another text."""
    match = MEMORY_TEXT.fullmatch(size or "")
    return None if match is None else int(float(match[1]) * UNIT_BYTES[match[2].upper()])


def run_groups(trainer_defaults: dict[str, Any] | None = None) -> list[FlagGroup]:
    """The groups of these flags and the Trainer's, in the order of the fields of `PretrainArguments`."""
    trainer = trainer_group(trainer_defaults)
    return [
        dataclass_group("Optimization", OptimizationArguments),
        dataclass_group("Checkpoints and stops", DurabilityArguments),
        dataclass_group("Monitoring", ObservabilityArguments),
        dataclass_group("Plan", PlanArguments),
        replace(trainer, build=lambda given: _leave_open(trainer.build(given), given)),
    ]
