"""Every key of DeepSpeed 0.19.8's config: what this suite is tested with, and what is rejected, with the reason.

DeepSpeed knows hundreds of keys. One that changes what is trained, or that it ignores with ZeRO-3, would cost weeks of
GPU time, so whatever is not in these tables is rejected. A test holds them against the installed DeepSpeed.
"""

from dataclasses import dataclass
from typing import Any

AUTO = "auto"


@dataclass(frozen=True)
class Value:
    """What a key accepts: `only` these values, if any, for a `reason`; `auto` where the Trainer may fill it in."""

    kind: type
    minimum: float = 0
    only: tuple[Any, ...] = ()
    reason: str = ""
    auto: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of JSON, None if nothing is."""
        if value == AUTO and self.auto:
            return None
        if not self._is_of_kind(value):
            return f"expects {EXPECTED[self.kind]}{' or auto' if self.auto else ''}"
        if self.only and value not in self.only:
            return f"set it to {' or '.join(map(str, self.only))}{', ' if self.reason else ''}{self.reason}"
        if self.kind in (int, float) and not self.minimum <= value < float("inf"):
            return f"give {self.minimum:g} or more"
        return None

    def _is_of_kind(self, value: Any) -> bool:
        if self.kind is int:  # 5e8 is usual, and a float in JSON
            return type(value) is int or (type(value) is float and value.is_integer())
        return type(value) in ((int, float) if self.kind is float else (self.kind,))


@dataclass(frozen=True)
class Rejected:
    """Why a key is rejected; a value that switches it off (false, null, `off`) passes and is dropped."""

    reason: str
    off: tuple[Any, ...] = ()


EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
SWITCH, COUNT, SIZE = Value(bool), Value(int), Value(int, minimum=1)
OFFLOAD = {"device": Value(str, only=("none", "cpu", "nvme")), "nvme_path": Value(str), "pin_memory": SWITCH}
RATIO = "what stays on the GPU would train at the first step's learning rate forever"  # no scheduler sets its optimizer
PRECISION = {"enabled": Value(bool, auto=True)}

# Changed together in a run of tests/programs/pretrain/test_deepspeed_config.py, whose losses stay those of
# ds_config.json; `compile` is that of benchmarks/gpu/rows.py, `aio` and nvme need a GPU, the rest of fp16 is
# in tests/faults/test_spikes.py.
ACCEPTED: dict[str, Any] = {
    "zero_optimization": {
        "stage": Value(int, only=(3,), reason="this suite trains with ZeRO-3"),
        "overlap_comm": SWITCH,
        "contiguous_gradients": SWITCH,
        "reduce_scatter": SWITCH,
        "reduce_bucket_size": Value(int, minimum=1, auto=True),
        "sub_group_size": SIZE,
        "stage3_prefetch_bucket_size": Value(int, auto=True),
        "stage3_param_persistence_threshold": Value(int, auto=True),
        "stage3_model_persistence_threshold": COUNT,
        "stage3_max_live_parameters": COUNT,
        "stage3_max_reuse_distance": COUNT,
        "stage3_gather_16bit_weights_on_model_save": Value(bool, only=(True,), reason="the exported model needs it"),
        "offload_optimizer": {**OFFLOAD, "buffer_count": SIZE, "ratio": Value(float, only=(1,), reason=RATIO)},
        "offload_param": {**OFFLOAD, "buffer_count": SIZE, "buffer_size": SIZE, "max_in_cpu": COUNT},
        # Of stages 1 and 2; the configs of many projects have them, and in stage 3 they do nothing.
        "allgather_partitions": SWITCH,
        "allgather_bucket_size": SIZE,
        "round_robin_gradients": SWITCH,
        "ignore_unused_parameters": SWITCH,
        "use_multi_rank_bucket_allreduce": SWITCH,
    },
    "bf16": PRECISION,
    "fp16": {
        **PRECISION,
        "loss_scale": Value(float),
        "initial_scale_power": COUNT,
        "loss_scale_window": SIZE,
        "hysteresis": SIZE,
        "min_loss_scale": SIZE,
    },
    "data_types": {"grad_accum_dtype": Value(str, only=("fp32", "bf16", "fp16"), auto=True)},
    "gradient_clipping": Value(float, auto=True),
    "train_batch_size": Value(int, minimum=1, auto=True),
    "train_micro_batch_size_per_gpu": Value(int, minimum=1, auto=True),
    "gradient_accumulation_steps": Value(int, minimum=1, auto=True),
    "steps_per_print": SIZE,
    "wall_clock_breakdown": SWITCH,
    "zero_allow_untested_optimizer": SWITCH,
    "zero_force_ds_cpu_optimizer": SWITCH,
    "compile": {"deepcompile": SWITCH},
    "aio": {
        "block_size": SIZE,
        "queue_depth": SIZE,
        "intra_op_parallelism": SIZE,
        "single_submit": SWITCH,
        "overlap_events": SWITCH,
        "use_gds": SWITCH,
    },
}

UNTESTED = "it is not tested with this suite"
REMOVED = "DeepSpeed has removed it"
MONITOR = "use --report_to; it would write or upload beside the run's own log"
NOT_STAGE_3 = "it belongs to another ZeRO stage"
QUANTIZED = "it sends rounded weights or gradients, so the losses would be others"
HALF_STATES = "use --optim adamw_bf16 and --grad_accum_dtype; a checkpoint could not be resumed otherwise"
ACTIVATIONS = "use --activation_checkpointing; DeepSpeed's is not that of the model"
REJECTED: dict[str, Rejected] = {
    "optimizer": Rejected("--optim, --learning_rate, --weight_decay and --adam_beta2 decide it"),
    "scheduler": Rejected("--lr_scheduler_type decides it"),
    "torch_autocast": Rejected("--bf16 and --fp16 decide it"),
    "communication_data_type": Rejected("--grad_accum_dtype decides it", off=(AUTO,)),
    "seq_parallel_communication_data_type": Rejected(UNTESTED, off=("fp32",)),
    "sequence_parallel_size": Rejected("use --sequence_parallel_size", off=(1,)),
    "prescale_gradients": Rejected("ZeRO-3 averages gradients over all GPUs"),
    "gradient_predivide_factor": Rejected("ZeRO-3 averages gradients over all GPUs", off=(1,)),
    "gradient_allreduce_op": Rejected("gradients are averaged; ZeRO-3 has no sum", off=("mean",)),
    "managed_gradient_accumulation": Rejected("the Trainer needs it to be true", off=(True,)),
    "activation_checkpointing": Rejected(ACTIVATIONS),
    "tensor_parallel": Rejected("this suite shards with ZeRO-3 alone"),
    "expert_parallel": Rejected("a Llama has no experts"),
    "use_data_before_expert_parallelism": Rejected("a Llama has no experts"),
    "pipeline": Rejected("this suite shards with ZeRO-3 alone"),
    "hybrid_engine": Rejected("it is for reinforcement learning"),
    "data_efficiency": Rejected("blocks come in the order of --seed, all of them and whole"),
    "dataloader_drop_last": Rejected("the loader is this suite's"),
    "checkpoint": Rejected("checkpoints are written and verified by this suite"),
    "datastates_ckpt": Rejected("checkpoints are written and verified by this suite"),
    "flops_profiler": Rejected("FLOP/s and MFU are in the log"),
    "comms_logger": Rejected(UNTESTED),
    "timers": Rejected(UNTESTED),
    "memory_breakdown": Rejected("memory is in the log, and --profile_plan lists its parts"),
    "dump_state": Rejected("run.json has DeepSpeed's config as the engine has it"),
    "disable_python_gc": Rejected(UNTESTED),
    "disable_allgather": Rejected(NOT_STAGE_3),
    "tensorboard": Rejected(MONITOR),
    "wandb": Rejected(MONITOR),
    "csv_monitor": Rejected(MONITOR),
    "comet": Rejected(MONITOR),
    "autotuning": Rejected("use --per_device_train_batch_size auto and --dry_run"),
    "weight_quantization": Rejected(QUANTIZED),
    "vocabulary_size": Rejected("the tokenizer decides it"),
    "log_level": Rejected(UNTESTED),
    "nebula": Rejected(REMOVED),
    "compression_training": Rejected(REMOVED),
    "amp": Rejected(f"{REMOVED}; use --bf16 or --fp16"),
    "quantize_training": Rejected(REMOVED),
    "sparse_gradients": Rejected(REMOVED),
    "eigenvalue": Rejected(REMOVED),
    "sparse_attention": Rejected(REMOVED),
    "elasticity": Rejected(f"{REMOVED}; a checkpoint resumes with any number of GPUs here"),
    "graph_harvesting": Rejected(REMOVED),
    "curriculum_learning": Rejected(REMOVED),
    "progressive_layer_drop": Rejected(REMOVED),
    "zero_optimization.mics_shard_size": Rejected(REMOVED, off=(-1,)),
    "zero_optimization.mics_hierarchical_params_gather": Rejected(REMOVED),
    "zero_optimization.zeropp_loco_param": Rejected(REMOVED),
    "zero_optimization.zenflow": Rejected("it updates weights with gradients of an earlier step"),
    "zero_optimization.zero_quantized_weights": Rejected(QUANTIZED),
    "zero_optimization.zero_quantized_nontrainable_weights": Rejected(QUANTIZED),
    "zero_optimization.zero_quantized_gradients": Rejected(QUANTIZED),
    "zero_optimization.zero_hpz_partition_size": Rejected("on one machine it only costs memory", off=(0, 1)),
    "zero_optimization.elastic_checkpoint": Rejected("a checkpoint resumes with any number of GPUs here"),
    "zero_optimization.load_from_fp32_weights": Rejected("a resume must be exact", off=(True,)),
    "zero_optimization.compute_grad_norm": Rejected("clipping needs the norm", off=(True,)),
    "zero_optimization.pipeline_loading_checkpoint": Rejected(UNTESTED),
    "zero_optimization.memory_efficient_linear": Rejected(UNTESTED, off=(True,)),
    "zero_optimization.override_module_apply": Rejected("weights are initialized through it", off=(True,)),
    "zero_optimization.leaf_module": Rejected("each decoder layer is one already"),
    "zero_optimization.stage3_module_granularity_threshold": Rejected("each decoder layer is a leaf already", off=(0,)),
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": Rejected(UNTESTED),
    "zero_optimization.stage3_allgather_sequential": Rejected(UNTESTED),
    "zero_optimization.log_trace_cache_warnings": Rejected(UNTESTED),
    "zero_optimization.enable_sanity_checks": Rejected(UNTESTED),
    "zero_optimization.save_muon_momentum_buffer_in_memory": Rejected("use --optim muon"),
    "zero_optimization.legacy_stage1": Rejected(NOT_STAGE_3),
    "zero_optimization.parameter_alignment": Rejected(NOT_STAGE_3),
    "zero_optimization.offload_optimizer.pipeline_read": Rejected(UNTESTED),
    "zero_optimization.offload_optimizer.pipeline_write": Rejected(UNTESTED),
    "zero_optimization.offload_optimizer.fast_init": Rejected(UNTESTED),
    "zero_optimization.offload_optimizer.super_offload": Rejected("it takes the place of --optim"),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": Rejected("it belongs to super_offload", off=(0.8,)),
    "bf16.immediate_grad_update": Rejected(NOT_STAGE_3),
    "bf16.check_grad_overflow": Rejected("a step with a NaN must be skipped", off=(True,)),
    "bf16.bf16_master_weights_and_grads": Rejected(HALF_STATES),
    "bf16.bf16_optimizer_states": Rejected(HALF_STATES),
    "fp16.auto_cast": Rejected(UNTESTED),
    "fp16.consecutive_hysteresis": Rejected(UNTESTED),
    "fp16.fp16_master_weights_and_grads": Rejected(HALF_STATES),
    "data_types.param_dtype": Rejected("--bf16 and --fp16 decide it"),
    "data_types.buffer_dtype": Rejected(UNTESTED),
    "data_types.keep_in_fp32_modules": Rejected(UNTESTED, off=(AUTO,)),
    **{
        f"compile.{name}": Rejected(UNTESTED)
        for name in (
            "autoep_non_moe",
            "free_activation",
            "free_activation_threshold",
            "offload_activation",
            "offload_activation_pin_memory",
            "offload_opt_states",
            "double_buffer",
            "symmetric_memory",
            "debug_log",
            "offload_parameters",
            "sync_before_reduce",
            "sync_after_reduce",
            "sync_before_allgather",
            "sync_after_allgather",
            "keep_int_input_tensors",
            "keep_all_input_tensors",
            "passes",
        )
    },
}
