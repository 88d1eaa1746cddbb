"""The Trainer's own flags, read from its source.

Importing `TrainingArguments` imports torch (2 s warm, 10 s and more from a cold disk); reading its source takes 30
ms, so `--help` prints at once and a misspelled flag is refused before anything is loaded. A test holds this reading
against the imported class.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pretraining.cli.flags import Flag
from pretraining.errors import nearest, shortened

# What this suite does itself, so that the Trainer's flag would be read and do nothing: --debug shows tracebacks, the
# schedule and the optimizer have flags of their own, the order of the blocks and the loss are not the Trainer's. The
# tokens of a step are always those of all processes, and callbacks take up their state by themselves. Going on is
# --resume; enable_jit_checkpoint has each rank save for itself at a signal, which leaves a broken newest checkpoint.
# While a push lasts, the newest checkpoint waits for its end.
OUR_OWN_NAMES = (
    "debug",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "optim",
    "optim_args",
    "optim_target_modules",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "length_column_name",
    "ignore_data_skip",
    "dataloader_drop_last",
    "auto_find_batch_size",
    "logging_nan_inf_filter",
    "remove_unused_columns",
    "include_num_input_tokens_seen",
    "average_tokens_across_devices",
    "restore_callback_states_from_checkpoint",
    "dataloader_persistent_workers",
    "save_only_model",
    "resume_from_checkpoint",
    "enable_jit_checkpoint",
    "hub_always_push",
)
# What the Trainer would read as a file's name where it is not JSON.
JSON_NAMES = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES = {  # which its source computes, or leaves to whatever fails later
    "log_level": LOG_LEVELS,
    "log_level_replica": LOG_LEVELS,
    "torch_compile_backend": ("inductor", "cudagraphs", "aot_eager", "eager"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
NOT_WITH_DEEPSPEED = ("fsdp", "fsdp_config", "accelerator_config")
LONGEST_NAME = 128  # of mlflow and wandb
HUB_REPOSITORY = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]{0,95}", re.ASCII)
METRICS = ("loss", "perplexity", "accuracy", "bits_per_byte")
CHECKPOINTING_SWITCHES = ("offload", "use_reentrant", "preserve_rng_state", "early_stop")
MAX_LAYERS = 1000
SIMPLE_TYPES = {"bool": bool, "int": int, "float": float, "str": str}


def trainer_flags(defaults: dict[str, Any]) -> list[Flag]:
    """Every field of `transformers.TrainingArguments` that text can set, with our `defaults` in place of theirs."""
    choices = _enum_choices()
    flags = []
    for statement in _class_body("training_args.py", "TrainingArguments"):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
            flag = _flag_of(statement, defaults, choices)
            if flag is not None:
                flags.append(flag)
    return flags


def trainer_value_problems(values: dict[str, Any]) -> Iterator[str]:
    """What is wrong with values that the Trainer would take and fail on hours later, or not use at all."""
    for name in NOT_WITH_DEEPSPEED:
        if values.get(name) is not None:
            yield f"--{name} {shortened(str(values[name]))}: DeepSpeed shards and loads here, by --deepspeed; remove it"
    for name in ("run_name", "project"):
        if len(values.get(name) or "") > LONGEST_NAME:
            yield f"--{name} {shortened(values[name])}: is longer than the {LONGEST_NAME} characters that trackers take"
    repository = values.get("hub_model_id")
    if repository is not None and not HUB_REPOSITORY.fullmatch(repository):
        yield f"--hub_model_id {shortened(repository)}: is not a repository of the Hub; pass USER/NAME"
    metric = values.get("metric_for_best_model")
    if metric is not None and metric.removeprefix("eval_").partition("/")[0] not in METRICS:
        names = f"{', '.join(METRICS)}{nearest(metric, METRICS)}"
        yield f"--metric_for_best_model {shortened(metric)}: is not one of {names}"
    for name in JSON_NAMES:
        yield from (f"--{name}: {problem}" for problem in _checkpointing_problems(values.get(name) or {}))


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


def _flag_of(statement: ast.AnnAssign, defaults: dict[str, Any], choices: dict[str, tuple[str, ...]]) -> Flag | None:
    name = ast.unparse(statement.target)
    variants = [variant.strip() for variant in ast.unparse(statement.annotation).split("|")]
    options = {keyword.arg: keyword.value for keyword in statement.value.keywords}  # type: ignore[union-attr]
    value_type = dict if name in JSON_NAMES else _value_type(variants)
    if value_type is None or name in OUR_OWN_NAMES:
        return None
    return Flag(
        name=name,
        value_type=value_type,
        default=defaults[name] if name in defaults else _literal(options.get("default")),
        help=_help(options["metadata"]),
        choices=CHOICES.get(name) or next((choices[variant] for variant in variants if variant in choices), ()),
        is_list=any(variant.startswith("list[str]") for variant in variants),
        is_optional="None" in variants or (name in defaults and defaults[name] is None),
    )


def _value_type(variants: list[str]) -> type | None:
    """The type that text is read as; a field that takes only Python objects has none."""
    if any(variant.startswith("dict") for variant in variants):
        return str if "str" in variants else dict  # "dict | str" fields read JSON themselves
    if "str" in variants or any(variant.startswith("list[str]") for variant in variants):
        return str
    return next((SIMPLE_TYPES[variant] for variant in variants if variant in SIMPLE_TYPES), None)


def _help(metadata: ast.expr) -> str:
    """The words of a help text, whether it is one string, several joined, or an f-string."""
    assert isinstance(metadata, ast.Dict)
    words = [node.value for node in ast.walk(metadata.values[0]) if isinstance(node, ast.Constant)]
    return " ".join(" ".join(str(word) for word in words).split())


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:  # a default that is computed, such as the optimizer's: the Trainer fills it in
        return None


@cache
def _enum_choices() -> dict[str, tuple[str, ...]]:
    """The allowed words of each string enumeration, by its class name, such as SchedulerType."""
    choices = {}
    for file_name in ("training_args.py", "trainer_utils.py"):
        for node in ast.walk(_source(file_name)):
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["ExplicitEnum"]:
                assigned = [statement.value for statement in node.body if isinstance(statement, ast.Assign)]
                choices[node.name] = tuple(_literal(value) for value in assigned)
    return choices


def _class_body(file_name: str, class_name: str) -> list[ast.stmt]:
    """The statements of a class of transformers, read from a file of its source without importing it."""
    return next(
        node.body for node in ast.walk(_source(file_name)) if isinstance(node, ast.ClassDef) and node.name == class_name
    )


@cache
def _source(file_name: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None, "transformers is not installed"
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / file_name).read_text())
