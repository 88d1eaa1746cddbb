"""Every key of DeepSpeed 0.19.8's config: what this suite is tested with, and what is rejected, with the reason.

DeepSpeed knows hundreds of keys. One that changes what is trained, or that it ignores, would cost weeks of GPU time, so
whatever is not in these tables is rejected. A test holds them against the installed DeepSpeed.
"""

from dataclasses import dataclass
from typing import Any

AUTO = "auto"
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


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


EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
SWITCH, COUNT, SIZE = Value(bool), Value(int), Value(int, minimum=1)
OFFLOAD = {"device": Value(str, only=("none", "cpu", "nvme")), "nvme_path": Value(str), "pin_memory": SWITCH}
RATIO = "what stays on the GPU would train at the first step's learning rate forever"  # no scheduler sets its optimizer
PRECISION = {"enabled": Value(bool, auto=True)}
STAGES = (1, 2, 3)
STAGE_REASON = "stage 0 shards nothing, and DeepSpeed 0.19.8 cannot sum its bf16 gradients in fp32"

# Changed together in a run of tests/programs/pretrain/test_deepspeed_config.py, whose losses stay those of
# ds_config.json; `compile` is that of benchmarks/gpu/rows.py, `aio` and nvme need a GPU, the rest of fp16 is
# in tests/faults/test_spikes.py.
ACCEPTED: dict[str, Any] = {
    "zero_optimization": {
        "stage": Value(int, only=STAGES, reason=STAGE_REASON),
        **dict.fromkeys(("overlap_comm", "contiguous_gradients", "reduce_scatter"), SWITCH),
        "reduce_bucket_size": Value(int, minimum=1, auto=True),
        "sub_group_size": Value(int, minimum=1, auto=True),
        **dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), Value(int, auto=True)),
        "stage3_model_persistence_threshold": COUNT,
        "stage3_max_live_parameters": Value(int, auto=True),
        "stage3_max_reuse_distance": COUNT,
        "zero_hpz_partition_size": Value(int, auto=True),
        "stage3_gather_16bit_weights_on_model_save": Value(bool, only=(True,), reason="the exported model needs it"),
        "offload_optimizer": {**OFFLOAD, "buffer_count": SIZE, "ratio": Value(float, only=(1,), reason=RATIO)},
        "offload_param": {**OFFLOAD, "buffer_count": SIZE, "buffer_size": SIZE, "max_in_cpu": COUNT},
        # Of stages 1 and 2; the configs of many projects have them, and in stage 3 they do nothing.
        **dict.fromkeys(("allgather_partitions", "round_robin_gradients", "ignore_unused_parameters"), SWITCH),
        "allgather_bucket_size": SIZE,
        "use_multi_rank_bucket_allreduce": SWITCH,
    },
    # Of stage 1: each bf16 gradient is added to its fp32 sum and freed at once, instead of after backward.
    "bf16": {**PRECISION, "immediate_grad_update": SWITCH},
    "fp16": {
        **PRECISION,
        "loss_scale": Value(float),
        "initial_scale_power": COUNT,
        **dict.fromkeys(("loss_scale_window", "hysteresis", "min_loss_scale"), SIZE),
    },
    "data_types": {"grad_accum_dtype": Value(str, only=("fp32", "bf16", "fp16"), auto=True)},
    "gradient_clipping": Value(float, auto=True),
    **dict.fromkeys(BATCH_KEYS, Value(int, minimum=1, auto=True)),
    "steps_per_print": SIZE,
    **dict.fromkeys(("wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), SWITCH),
    "timers": {"throughput": {"enabled": SWITCH, "synchronized": SWITCH}},  # wait for the GPU in each micro step
    "compile": {"deepcompile": SWITCH},
    "aio": {
        **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), SIZE),
        **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), SWITCH),
    },
}

# Keys that are rejected, by the reason; `zero.` stands for zero_optimization.
REJECTED_BY_REASON = {
    "--optim, --learning_rate, --weight_decay and --adam_beta2 decide it": "optimizer",
    "--lr_scheduler_type decides it": "scheduler",
    "--bf16 and --fp16 decide it": "torch_autocast data_types.param_dtype",
    "--grad_accum_dtype decides it": "communication_data_type",
    "it is not tested with this suite": (
        "seq_parallel_communication_data_type comms_logger disable_python_gc log_level "
        "zero.pipeline_loading_checkpoint zero.memory_efficient_linear "
        "zero.stage3_use_all_reduce_for_fetch_params zero.stage3_allgather_sequential "
        "zero.log_trace_cache_warnings zero.enable_sanity_checks zero.offload_optimizer.pipeline_read "
        "zero.offload_optimizer.pipeline_write zero.offload_optimizer.fast_init fp16.auto_cast "
        "fp16.consecutive_hysteresis data_types.buffer_dtype data_types.keep_in_fp32_modules "
        "compile.autoep_non_moe compile.free_activation compile.free_activation_threshold "
        "compile.offload_activation compile.offload_activation_pin_memory compile.offload_opt_states "
        "compile.double_buffer compile.symmetric_memory compile.debug_log compile.offload_parameters "
        "compile.sync_before_reduce compile.sync_after_reduce compile.sync_before_allgather "
        "compile.sync_after_allgather compile.keep_int_input_tensors compile.keep_all_input_tensors "
        "compile.passes"
    ),
    "use --sequence_parallel_size": "sequence_parallel_size",
    "gradients are averaged over all GPUs": "prescale_gradients gradient_predivide_factor",
    "gradients are averaged; the loss is scaled for it": "gradient_allreduce_op",
    "the Trainer needs it to be true": "managed_gradient_accumulation",
    "use --activation_checkpointing; DeepSpeed's is not that of the model": "activation_checkpointing",
    "AutoTP fails in this suite, see docs/explanation/parallelism.md; ZeRO shards the model": "tensor_parallel",
    "the Trainer does not run DeepSpeed's pipeline; ZeRO shards the model": "pipeline",
    "a Llama has no experts": "expert_parallel use_data_before_expert_parallelism",
    "it is for reinforcement learning": "hybrid_engine",
    "blocks come in the order of --seed, all of them and whole": "data_efficiency",
    "the loader is this suite's": "dataloader_drop_last",
    "checkpoints are written and verified by this suite": "checkpoint datastates_ckpt",
    "FLOP/s and MFU are in the log": "flops_profiler",
    "memory is in the log, and --profile_plan lists its parts": "memory_breakdown",
    "run.json has DeepSpeed's config as the engine has it": "dump_state",
    "it is of stage 0, or of an older ZeRO-1": "disable_allgather zero.legacy_stage1",
    "a checkpoint could not be resumed with another number of GPUs": "zero.parameter_alignment",
    "use --report_to; it would write or upload beside the run's own log": "tensorboard wandb csv_monitor comet",
    "use --per_device_train_batch_size auto and --dry_run": "autotuning",
    "it sends rounded weights or gradients, so the losses would be others": (
        "weight_quantization zero.zero_quantized_weights zero.zero_quantized_nontrainable_weights "
        "zero.zero_quantized_gradients"
    ),
    "the tokenizer decides it": "vocabulary_size",
    "DeepSpeed has removed it": (
        "nebula compression_training quantize_training sparse_gradients eigenvalue sparse_attention "
        "graph_harvesting curriculum_learning progressive_layer_drop zero.mics_shard_size "
        "zero.mics_hierarchical_params_gather zero.zeropp_loco_param"
    ),
    "DeepSpeed has removed it; use --bf16 or --fp16": "amp",
    "DeepSpeed has removed it; a checkpoint resumes with any number of GPUs here": "elasticity",
    "it updates weights with gradients of an earlier step": "zero.zenflow",
    "a checkpoint resumes with any number of GPUs here": "zero.elastic_checkpoint",
    "a resume must be exact": "zero.load_from_fp32_weights",
    "clipping needs the norm": "zero.compute_grad_norm",
    "weights are initialized through it": "zero.override_module_apply",
    "each decoder layer is one already": "zero.leaf_module",
    "each decoder layer is a leaf already": "zero.stage3_module_granularity_threshold",
    "use --optim muon": "zero.save_muon_momentum_buffer_in_memory",
    "it takes the place of --optim": "zero.offload_optimizer.super_offload",
    "it belongs to super_offload": "zero.offload_optimizer.cpuadam_cores_perc",
    "a step with a NaN must be skipped": "bf16.check_grad_overflow",
    "use --optim adamw_bf16 and --grad_accum_dtype; a checkpoint could not be resumed otherwise": (
        "bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states fp16.fp16_master_weights_and_grads"
    ),
}
# Of stage 3 alone, by their first letters; the lower stages ignore them.
STAGE_3_KEYS = ("stage3_", "offload_param", "sub_group_size", "zero_hpz_")
# What is rejected below stage 3, by its place, with the reason.
REJECTED_BELOW_STAGE_3 = {
    # DeepSpeed issues 5294, 4298, 7804, 8061: two streams share a buffer. No test on CPUs shows it.
    "zero_optimization.overlap_comm": "below stage 3 it has corrupted gradients in several releases of DeepSpeed",
    # Partitions in another order than the layers: no reader of checkpoints here knows it.
    "zero_optimization.round_robin_gradients": "a checkpoint could not be resumed with another number of GPUs",
    "compile.deepcompile": "it is not tested below stage 3",
}
REJECTED = {
    name.replace("zero.", "zero_optimization."): reason
    for reason, names in REJECTED_BY_REASON.items()
    for name in names.split()
}
# What switches a rejected key off, in addition to false and null: it passes and is dropped.
OFF: dict[str, tuple[Any, ...]] = {
    "communication_data_type": ("auto",),
    "seq_parallel_communication_data_type": ("fp32",),
    "sequence_parallel_size": (1,),
    "gradient_predivide_factor": (1,),
    "gradient_allreduce_op": ("mean",),
    "managed_gradient_accumulation": (True,),
    "zero_optimization.mics_shard_size": (-1,),
    "zero_optimization.load_from_fp32_weights": (True,),
    "zero_optimization.compute_grad_norm": (True,),
    "zero_optimization.memory_efficient_linear": (True,),
    "zero_optimization.override_module_apply": (True,),
    "zero_optimization.stage3_module_granularity_threshold": (0,),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": (0.8,),
    "bf16.check_grad_overflow": (True,),
    "data_types.keep_in_fp32_modules": ("auto",),
}
