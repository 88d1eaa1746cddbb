"""The Trainer's flags that this suite supports, with the defaults of Llama 2; --trainer_arguments reaches its others.

Defaults that differ from the Trainer's are those of Llama 2 (arXiv 2307.09288, section 2.2), or are settings without
which the numbers in the log would be wrong.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pretraining.cli.flags import GENERIC_FLAG, HIDDEN, Flag, flag, flags_of
from pretraining.cli.packages import tracker_problems
from pretraining.cli.recipe import FlagGroup
from pretraining.errors import UserError, nearest, raise_problems, shortened

AUTO = "auto"
MAX_NAME_CHARACTERS = 128  # of mlflow and wandb
HUB_REPOSITORY = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]{0,95}", re.ASCII)
METRICS = ("loss", "perplexity", "accuracy", "bits_per_byte")
CHECKPOINTING_SWITCHES = ("offload", "use_reentrant", "preserve_rng_state", "early_stop")
MAX_LAYERS = 1000
# Fields that have no flag, and what they are unless --trainer_arguments changes them.
FIXED = {
    "log_level": "error",  # transformers' own; the lines of this suite do not depend on it
    "log_level_replica": "error",
    "prediction_loss_only": True,
    "trackio_static_space_id": False,  # theirs creates a Space when the model is pushed
}
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
# Of fields that have no flag and that transformers takes as any text, and fails on later.
CHOICES = {
    "log_level": LOG_LEVELS,
    "log_level_replica": LOG_LEVELS,
    "torch_compile_backend": ("inductor", "cudagraphs", "aot_eager", "eager"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
# Fields of the Trainer that do nothing here or contradict ZeRO-3, by the reason.
REJECTED_BY_REASON = {
    "DeepSpeed shards the training, see --deepspeed": "fsdp fsdp_config accelerator_config parallelism_config",
    "DeepSpeed reduces the gradients, not DDP": (
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend"
    ),
    "use --resume": (
        "resume_from_checkpoint enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint"
    ),
    "a checkpoint without optimizer states cannot be resumed; use --export_every_tokens N": "save_only_model",
    "use --optim": "optim_args optim_target_modules",
    "use --lr_scheduler_type, --min_learning_rate and --decay_steps": "lr_scheduler_kwargs",
    "use --per_device_train_batch_size auto": "auto_find_batch_size",
    "this suite computes loss and metrics itself": (
        "label_smoothing_factor neftune_noise_alpha label_names logging_nan_inf_filter include_num_input_tokens_seen "
        "average_tokens_across_devices include_for_metrics batch_eval_metrics eval_do_concat_batches "
        "eval_use_gather_object eval_accumulation_steps"
    ),
    "this suite reads the blocks itself": (
        "train_sampling_strategy length_column_name dataloader_drop_last dataloader_persistent_workers "
        "remove_unused_columns dataloader_in_order"
    ),
    "has no effect: this program trains, evaluates and tests": "do_train do_eval do_predict",
    "pushes never overtake each other here": "hub_always_push",
}
REJECTED = {name: reason for reason, names in REJECTED_BY_REASON.items() for name in names.split()}


@dataclass(frozen=True)
class TrainerArguments:
    """Flags that become fields of `transformers.TrainingArguments`."""

    output_dir: str | None = flag(None, "run folder; without it, runs/MODEL")
    deepspeed: str | None = flag("ds_config.json", "DeepSpeed config file; auto: planned, with what else is not set")
    per_device_train_batch_size: int | Literal["auto"] | None = flag(
        1, "blocks per GPU and micro step; auto: as many as fit, with the same global batch"
    )
    gradient_accumulation_steps: int | None = flag(None, "replaced by --global_batch_tokens")
    num_train_epochs: float = flag(1.0, "passes over the data")
    max_steps: int = flag(-1, "length of the run in steps")
    learning_rate: float = flag(3e-4, "peak learning rate")
    warmup_steps: float = flag(2000, "linear warmup; below 1: share of the run")
    weight_decay: float = flag(0.1, "weight decay of matrices")
    adam_beta1: float = flag(0.9, "decay of AdamW's first moment")
    adam_beta2: float = flag(0.95, "decay of AdamW's second moment")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon")
    max_grad_norm: float = flag(1.0, "norm to clip gradients to; 0: never")
    bf16: bool | None = flag(None, "train in bf16; none: if it is fast here")
    fp16: bool = flag(False, "train in fp16 with loss scaling")
    activation_checkpointing: bool | None = flag(None, "recompute activations")
    activation_checkpointing_kwargs: dict | None = flag(None, 'JSON, e.g. {"every_n_layers": 2, "offload": true}')
    gradient_checkpointing: bool | None = flag(None, HIDDEN)  # earlier names of both
    gradient_checkpointing_kwargs: dict | None = flag(None, HIDDEN)
    use_liger_kernel: bool = flag(False, "use fused kernels; needs liger-kernel")
    seed: int = flag(42, "seed of weights, dropout and block order")
    data_seed: int | None = flag(None, "seed of the block order alone")
    use_cpu: bool | None = flag(None, "do not use GPUs")
    dataloader_num_workers: int = flag(0, "processes per rank that load blocks")
    dataloader_prefetch_factor: int | None = flag(None, "micro batches each loads in advance")
    eval_strategy: Literal["no", "steps"] = flag("steps", "no: never evaluate")
    eval_steps: float = flag(500, "steps between evaluations")
    eval_delay: float = flag(0, "steps before the first evaluation")
    eval_on_start: bool = flag(False, "evaluate before the first step")
    per_device_eval_batch_size: int | None = flag(None, "blocks per GPU in an evaluation; none: as in training")
    save_strategy: Literal["no", "steps", "best"] = flag("steps", "no: save no checkpoint but the last")
    save_steps: float = flag(500, "steps between checkpoints")
    save_total_limit: int | None = flag(2, "checkpoints to keep; 0 or -1: all")
    load_best_model_at_end: bool = flag(False, "export the best checkpoint")
    metric_for_best_model: str | None = flag(None, "loss, perplexity, accuracy or bits_per_byte")
    greater_is_better: bool | None = flag(None, "whether a larger metric is better")
    logging_strategy: Literal["no", "steps"] = flag("steps", "no: log nothing but the summary")
    logging_steps: float = flag(1, "steps between log records")
    report_to: list[str] | None = flag(["tensorboard"], "trackers, e.g. tensorboard wandb")
    run_name: str | None = flag(None, "name of the run in trackers")
    project: str = flag("pretraining", "project of the run in trackers")
    push_to_hub: bool | None = flag(None, "push the model to the Hub; none: if --hub_model_id is given")
    hub_model_id: str | None = flag(None, "repository to push to, USER/NAME")
    hub_token: str | None = flag(None, "instead of that of `hf auth login`")
    hub_private_repo: bool | None = flag(True, "false publishes the model")
    hub_strategy: Literal["end", "every_save"] = flag("end", "when to push the model, without optimizer states")
    ddp_timeout: int = flag(7200, "seconds that ranks wait for each other")  # rank 0 may write a checkpoint that long
    local_rank: int = flag(-1, HIDDEN)  # set by launchers
    trainer_arguments: list[str] | None = flag(None, "other fields of TrainingArguments, as NAME=VALUE", adds_up=True)


TRAINER_DEFAULTS: dict[str, Any] = {
    **FIXED,
    **{flag.name: flag.default for flag in flags_of(TrainerArguments) if flag.name != GENERIC_FLAG},
}


def trainer_group(defaults: dict[str, Any] | None = None) -> FlagGroup:
    """The Trainer's flags; their values become a dict for `TrainingArguments`, with `defaults` over ours."""
    defaults = defaults or {}
    flags = [
        dataclasses.replace(flag, default=defaults.get(flag.name, flag.default)) for flag in flags_of(TrainerArguments)
    ]
    return FlagGroup("Trainer", flags, lambda given: with_our_defaults({**defaults, **given}), REJECTED)


def with_our_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """What was given over our defaults.

    Raises:
        UserError: with all problems at once.
    """
    values = {**TRAINER_DEFAULTS, **given}
    if values["push_to_hub"] is None:
        values["push_to_hub"] = values["hub_model_id"] is not None
    fields = values.pop(GENERIC_FLAG, None) or []
    values["report_to"] = values["report_to"] or []  # "none" was read as no value, which the Trainer rejects
    raise_problems([*tracker_problems(values["report_to"]), *_value_problems(values)])
    if fields:
        values |= other_trainer_fields(fields)
        values["trackio_static_space_id"] = values["trackio_static_space_id"] or False  # none would create one
    return values


def _value_problems(values: dict[str, Any]) -> Iterator[str]:
    """What is wrong with values that the Trainer would accept and fail on hours later, or not use at all."""
    yield from _name_problems(values)
    if values["bf16"] and values["fp16"]:
        yield "--bf16 true --fp16 true: exclude each other; keep one"
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        yield from (f"--{name}: {problem}" for problem in _checkpointing_problems(values[name] or {}))


def _name_problems(values: dict[str, Any]) -> Iterator[str]:
    for name in ("run_name", "project"):
        if len(values[name] or "") > MAX_NAME_CHARACTERS:
            yield f"--{name} {shortened(values[name])}: is longer than the {MAX_NAME_CHARACTERS} characters of trackers"
    repository = values["hub_model_id"]
    if repository is not None and not HUB_REPOSITORY.fullmatch(repository):
        yield f"--hub_model_id {shortened(repository)}: is not a repository of the Hub; pass USER/NAME"
    metric = values["metric_for_best_model"]
    if metric is not None and metric.removeprefix("eval_").partition("/")[0] not in METRICS:
        names = f"{', '.join(METRICS)}{nearest(metric, METRICS)}"
        yield f"--metric_for_best_model {shortened(metric)}: is not one of {names}"


def _checkpointing_problems(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if name == "every_n_layers":
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LAYERS:
                yield f"every_n_layers is {shortened(repr(value))}; must be a whole number in [1, {MAX_LAYERS}]"
        elif name not in CHECKPOINTING_SWITCHES:
            names = ("every_n_layers", *CHECKPOINTING_SWITCHES)
            yield f"{shortened(name)} is not one of {', '.join(names)}{nearest(name, names)}"
        elif not isinstance(value, bool):
            yield f"{name} is {shortened(repr(value))}; must be true or false"


def other_trainer_fields(settings: Sequence[str]) -> dict[str, Any]:
    """The values of --trainer_arguments, each NAME=VALUE or, from a mapping of a recipe, a JSON object.

    Imports transformers, which knows its fields and their types.

    Raises:
        UserError: with all problems at once.
    """
    texts: dict[str, str | None] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        texts |= _texts_of_json(setting) if setting.startswith("{") else {name: value}
    problems = [f"--{GENERIC_FLAG} {name}: {reason}" for name, reason in map(_misplaced, texts) if reason]
    raise_problems(problems)

    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    values: dict[str, Any] = {}
    for name, text in texts.items():
        place = f"--{GENERIC_FLAG} {shortened(name)}"
        if name not in fields:
            problems.append(f"{place}: transformers.TrainingArguments has no such field{nearest(name, fields)}")
            continue
        field = _field_flag(name, hints[name])
        try:
            if text is None and not field.is_optional:
                raise ValueError("cannot be null; pass a value or remove it")
            values[name] = None if text is None else field.value([text])
        except ValueError as error:
            problems.append(f"{place}: {error}")
    raise_problems(problems)
    return values


def _texts_of_json(setting: str) -> dict[str, str | None]:
    try:
        values = json.loads(setting)
    except (ValueError, RecursionError):
        raise UserError(f"--{GENERIC_FLAG} {shortened(setting)}: is neither NAME=VALUE nor a JSON object") from None
    return {name: value if isinstance(value, str | None) else json.dumps(value) for name, value in values.items()}


def _misplaced(name: str) -> tuple[str, str | None]:
    """The name, and why it cannot be given by --trainer_arguments."""
    own_flags = {field.name for field in dataclasses.fields(TrainerArguments)} | {"optim", "lr_scheduler_type", "debug"}
    return name, f"use --{name}" if name in own_flags else REJECTED.get(name)


def _field_flag(name: str, hint: Any) -> Flag:
    """A field of the Trainer as a flag; of several types the first one here: an object, a truth value, a number."""
    variants = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = {typing.get_origin(variant) or variant for variant in variants}
    value_type = next((kind for kind in (dict, bool, int, float) if kind in kinds), str)
    return Flag(name, value_type, None, "", choices=CHOICES.get(name, ()), is_optional=type(None) in kinds)
