"""The rows of docs/benchmarks/gpu.md: each a recipe with one changed setting, the most important first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pretraining.cli.flags import flag

BASE = "llama2_7b"
RECOMPUTED = ("--compile_layers", "false", "--activation_checkpointing", "true")
PLAIN = ("--compile_layers", "false")
SHORT = ("--global_batch_tokens", "32768")  # 8 micro steps; 20 steps take 62 s at 10,595 tokens/s
NUM_SLOT_ROWS = 5  # the first row, its three largest levers switched off, and ZeRO-1
SLOT_STEPS = 8  # 25 s at 10,595 tokens/s
LONG_STEPS = 2  # attention alone takes 165 s per step (arithmetic)


@dataclass(frozen=True)
class GpuArguments:
    """Flags of this benchmark."""

    minutes: float = flag(9.5, "time after which nothing is started and what runs is ended")
    row_minutes: float = flag(5.0, "time after which a row is ended, and counts as failed")
    slot: bool = flag(False, "first what only a GPU can show, with short rows: the first minutes on a new machine")
    dataset: str | None = flag(None, "block store to train on, in place of random ids")
    small: bool = flag(False, "the quickstart's model, on GPUs or without")
    again: bool = flag(False, "measure rows again that are done")
    output: Path = flag(Path("docs/benchmarks/gpu.md"), "page to write, with a .json of the same name beside it")


@dataclass(frozen=True)
class Row:
    """One measured run of pretrain.py.

    `zero` replaces fields of ds_config.json's zero_optimization, `sections` whole sections of it; `package` must be
    installed for it; `num_gpus` are the fewest that it is meant for, `host_gigabytes` the least host memory that is
    free, and `minutes` the time that it takes if that is more than --row_minutes. With --slot it has at most
    `SLOT_STEPS` steps.
    """

    name: str
    recipe: str = BASE
    num_steps: int = 20
    flags: tuple[str, ...] = ()
    zero: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    ds_config: str = "ds_config.json"
    package: str | None = None
    num_gpus: int = 1
    host_gigabytes: int = 0
    minutes: float | None = None

    @property
    def is_short(self) -> bool:
        """Whether the step is that of all rows of one model, so that their losses are comparable."""
        return self.recipe == BASE


def num_steps(row: Row, *, is_slot: bool) -> int:
    """Steps of a run of this row."""
    return min(row.num_steps, SLOT_STEPS) if is_slot else row.num_steps


ROWS = (
    Row("7B: layers compiled, nothing computed again"),
    Row("7B, plain: layers computed again, not compiled", flags=RECOMPUTED),
    Row(
        "flash attention of torch in place of cuDNN's",
        # torch reads the second; the first is its name before 2.10.
        environment={"TORCH_CUDNN_SDPA_PREFERRED": "0", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"},
    ),
    Row("compiled and computed again", flags=("--activation_checkpointing", "true")),
    # ZeRO-1 has no hooks of layers. With moments in fp32 its step needs 168.9 GB of the 142.4 of an H200 (planned), so
    # compare the row with "optimizer adamw_bf16", which is ZeRO-3.
    Row("ZeRO-1 in place of ZeRO-3, adamw_bf16", flags=("--optim", "adamw_bf16"), ds_config="ds_config_zero1.json"),
    Row("liger-kernel in place of torch.compile", flags=(*PLAIN, "--use_liger_kernel", "true"), package="liger_kernel"),
    Row("FlashAttention-3", flags=("--attention_implementation", "flash_attention_3"), package="flash_attn_interface"),
    Row("FlashAttention-2", flags=("--attention_implementation", "flash_attention_2"), package="flash_attn"),
    Row("fp8 products (torchao, tensorwise)", flags=("--fp8", "true"), package="torchao"),
    Row("loss in four tiles", flags=("--loss_tiles", "4")),
    Row(
        "two blocks a micro step, every second layer computed again",
        flags=(
            *("--per_device_train_batch_size", "2", "--activation_checkpointing", "true"),
            *("--activation_checkpointing_kwargs", '{"every_n_layers": 2}'),
        ),
    ),
    Row("optimizer in sub groups of 1e9", zero={"sub_group_size": 1e9}),
    Row("DeepSpeed's throughput timer", sections={"timers": {"throughput": {"enabled": True}}}),
    # On one GPU there is nothing to overlap: the host would wait for the GPU at each layer, and the row show that.
    Row("without overlap_comm", zero={"overlap_comm": False}, num_gpus=2),
    Row("without contiguous_gradients", zero={"contiguous_gradients": False}, num_gpus=2),
    Row(
        "messages of the hidden size squared",
        zero={"reduce_bucket_size": 4096**2, "stage3_prefetch_bucket_size": int(0.9 * 4096**2)},
        num_gpus=2,
    ),
    Row("gradients in messages of 5e7", zero={"reduce_bucket_size": 5e7}, num_gpus=2),
    Row("messages of 5e8", zero={"reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e8}, num_gpus=2),
    Row(
        "DeepCompile in place of --compile_layers",
        flags=(*PLAIN, "--trainer_arguments", "torch_compile=true"),
        sections={"compile": {"deepcompile": True}},
    ),
    Row("gradients added up in fp32", flags=(*RECOMPUTED, "--grad_accum_dtype", "fp32")),
    Row("allocator: no expandable segments", environment={"PYTORCH_ALLOC_CONF": "expandable_segments:False"}),
    Row("optimizer adamw_bf16", flags=("--optim", "adamw_bf16")),
    Row(
        "optimizer in host memory",
        flags=("--activation_checkpointing", "true"),
        ds_config="ds_config_offload_optimizer.json",
        host_gigabytes=160,
    ),
    Row(
        "optimizer and weights in host memory",
        flags=("--activation_checkpointing", "true"),
        ds_config="ds_config_offload.json",
        host_gigabytes=160,
    ),
    Row(
        "optimizer in host memory, DeepSpeed's Adam",
        flags=("--activation_checkpointing", "true"),
        ds_config="ds_config_offload_optimizer.json",
        host_gigabytes=160,
        sections={"zero_force_ds_cpu_optimizer": True},
    ),
    Row("TinyLlama-1.1B", recipe="tinyllama_1b"),
    Row("blocks of 262,144 tokens", recipe="long_blocks", num_steps=LONG_STEPS, host_gigabytes=100, minutes=10.0),
    Row("13B", recipe="llama2_13b", num_gpus=2),
)
SmallRow = partial(Row, recipe="quickstart", num_steps=60)
SMALL_ROWS = (
    SmallRow("quickstart: as it is"),
    SmallRow("layers compiled", flags=("--compile_layers", "true")),
    SmallRow("loss of all tokens at once", flags=("--loss_tiles", "1")),
    SmallRow("layers computed again", flags=("--activation_checkpointing", "true")),
    SmallRow("without overlap_comm", zero={"overlap_comm": False}),
)
