"""The flags of pretrain.py about learning: the learning rate, the optimizer, and spikes of the loss."""

from dataclasses import dataclass
from typing import Literal

from pretraining.cli.flags import flag

OptimizerName = Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"]


@dataclass(frozen=True)
class OptimizationArguments:
    """How the learning rate goes, how gradients are added up, and what a spike of the loss leads to."""

    lr_scheduler_type: Literal["cosine", "wsd", "linear", "constant"] = flag(
        "cosine", "how the learning rate goes after --warmup_steps; wsd: constant, and down in the last --decay_steps"
    )
    min_learning_rate: float | None = flag(None, "where cosine, wsd and linear end; a tenth of --learning_rate")
    decay_steps: float = flag(0.1, "last steps of wsd, in which it goes down; below 1 a share of the run")
    optim: OptimizerName = flag(
        "adamw",
        "optimizer: adamw_bf16 keeps its moments in bf16, adamw_8bit (needs bitsandbytes) in 8 bits; muon for the "
        "matrices of the layers, adamw for the rest",
    )
    weight_decay_on_norms: bool = flag(False, "decay the weights of norms and the biases too")
    grad_accum_dtype: Literal["auto", "fp32", "bf16"] = flag(
        "auto", "type in which micro steps are added up; auto: fp32 unless it does not fit the GPUs"
    )
    on_spike: Literal["warn", "rollback"] = flag(
        "warn", "rollback: reload the last checkpoint and skip the blocks of the spike, or of a NaN in the weights"
    )
    spike_threshold: float = flag(8.0, "robust z-score of a step's loss, among the last 128 steps, that is a spike")
    max_rollbacks: int = flag(3, "rollbacks after which the run stops")
