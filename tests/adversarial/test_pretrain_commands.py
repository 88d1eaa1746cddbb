"""Command lines that nobody means: each ends in one line, or in what this table says that it resolves to.

Numeric flags come from the flags themselves, so that a new one, or one without its range, is found here.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.finetune import ConversationArguments
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.pretrain import (
    DataArguments,
    DurabilityArguments,
    ModelArguments,
    ObservabilityArguments,
    PlanArguments,
)
from pretraining.cli.arguments.run import OptimizationArguments
from pretraining.cli.arguments.trainer import TrainerArguments
from pretraining.cli.flags import flags_of
from tests.adversarial.drivers.command_lines import DATACLASSES
from tests.conftest import PROJECT_DIR, TINY_MODEL
from tests.programs.launching import run_forked

# With what a program needs besides, so that the odd value is all that is wrong.
DS_CONFIG = ["--deepspeed", str(PROJECT_DIR / "ds_config.json")]
BASE = {
    "pretrain": DS_CONFIG,
    "plan": ["--bf16", "false", "--model", "quickstart", "--model_overrides", *TINY_MODEL, "--dataset", "{store}"],
    "finetune": ["--model", "model", "--data_files", "chat.jsonl", *DS_CONFIG],
    "trace": ["--block", "1"],
    "evaluate": ["--model", "model", "--data_files", "news.jsonl"],
}
BASE["plan"] += ["--global_batch_tokens", "512", "--warmup_steps", "2", *DS_CONFIG]
BASE["run"] = [*BASE["plan"], "--output_dir", "{tmp}/run", "--max_steps", "6"]
ODD_NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    str(10**30),
    str(-(10**30)),
    "9" * 5000,
    "",
    "x",
    "1,5",
    "true",
    "٣",
]
PRETRAIN_GROUPS = [ModelArguments, DataArguments, OptimizationArguments, DurabilityArguments, ObservabilityArguments]
# Flags that 0 and -1 mean something for: what, where it is not the number itself.
ZERO_IS_FINE = {
    "pretrain": {
        "min_learning_rate": "down to nothing",
        "warmup_steps": "no warm-up",
        "weight_decay": "no decay",
        "adam_beta1": "no momentum",
        "adam_beta2": "the last square",
        "max_grad_norm": "no clipping",
        "max_rollbacks": "stop at the first spike",
        "hang_timeout_minutes": "wait forever",
        "eval_delay": "no delay",
        "save_total_limit": "keep all",
        "seed": "a seed",
        "data_seed": "a seed",
        "dataloader_num_workers": "load in the process itself",
        "price_per_gpu_hour": "free",
        "local_rank": "set by launchers",
    },
    "generate": {"top_k": "all", "min_p": "no filter", "no_repeat_ngram_size": "no limit", "seed": "a seed"},
    "preprocess": {"max_skipped_fraction": "no unreadable line", "seed": "a seed"},
    "trace": {"block": "the first", "position": "the first"},
    "evaluate": {"seed": "a seed"},
    "resume_proof": {"seed": "a seed"},
}
MINUS_ONE_IS_FINE = {
    "pretrain": {"max_steps": "not given", "save_total_limit": "keep all", "local_rank": "not set by a launcher"}
}


@dataclass(frozen=True)
class Row:
    """A command line, and how it must end: with a problem that has `parts`, or with what it resolves to."""

    program: str
    words: list[str]
    parts: list[str] = field(default_factory=list)
    resolved: dict[str, Any] | None = None


def numeric_rows() -> Iterable[Row]:
    """Each numeric flag of each program with each odd value."""
    kinds = {"pretrain": [*PRETRAIN_GROUPS, PlanArguments], "finetune": [ConversationArguments]}
    kinds |= {"generate": [GenerateArguments], **{name: [kind] for name, kind in DATACLASSES.items()}}
    flags = {name: [flag for group in groups for flag in flags_of(group)] for name, groups in kinds.items()}
    flags["pretrain"] += flags_of(TrainerArguments)
    for program, found in flags.items():
        for flag in (flag for flag in found if flag.value_type in (int, float)):
            for value in ODD_NUMBERS:
                fine = {"0": ZERO_IS_FINE, "-1": MINUS_ONE_IS_FINE}.get(value, {}).get(program, {})
                words = [f"--{flag.name}={value}"]  # -inf alone would be a flag
                if flag.name == "num_gpus":
                    words += ["--dry_run"] if program == "pretrain" else []
                if flag.name in fine:
                    yield Row(program, words, resolved={})
                else:
                    yield Row(
                        program, words, parts=[f"--{flag.name}", "must be in" if _is_number(value, flag) else "expects"]
                    )


def _is_number(value: str, flag: Any) -> bool:
    try:
        flag.value_type(value)
    except ValueError:
        return False
    return value.isascii()


# Overrides of a preset's fields, and what must be said of them, for a plan as for a run.
OVERRIDES = {
    "hidden_size=0": "--model_overrides hidden_size=0: must be in [1, 1048576]",
    "hidden_size=-8": "must be in",
    "hidden_size=30": "is not a multiple of num_attention_heads",
    "hidden_size=12": "head_dim 3: must be even",
    "hidden_size=2001-99-99": "must be a number",
    "hidden_size=2001-01-01": "must be a number",
    "hidden_size=true": "must be a number",
    "hidden_size=2.5": "expected int, got float",
    "hidden_size=": "hidden_size",
    "hidden_size=" + "1" * 400: "must be in",
    "hidden_size=" + "1" * 5000: "must be a number",
    "hidden_size=" + "[" * 500: "must be a number",
    "num_hidden_layers=0": "must be in [1, 1000]",
    "num_hidden_layers=-1": "must be in",
    "num_hidden_layers=1000000000": "must be in",
    "num_attention_heads=-4": "must be in",
    "num_attention_heads=0": "must be in",
    "num_key_value_heads=3": "num_key_value_heads 3",
    "num_key_value_heads=0": "must be in",
    "head_dim=0": "must be in",
    "head_dim=-1": "must be in",
    "head_dim=7": "head_dim",
    "max_position_embeddings=0": "must be in",
    "vocab_size=99999999999": "must be in",
    "rope_theta=abc": "must be a number",
    "rope_theta=nan": "must be in (0, 1e12]",
    "rope_theta=.inf": "must be in",
    "rope_theta=-1": "must be in",
    "rope_theta=null": "must be a number",
    "rope_parameters={rope_type: foo}": "rope_type foo: is not one of default, linear",
    "rope_parameters={rope_type:foo}": "has no field rope_type:foo",
    "rope_parameters={rope_theta: abc}": "must be a number",
    "rope_parameters={rope_type: linear, factor: -2}": "not all frequencies are above 0",
    "rope_parameters={rope_type: yarn, factor: .nan}": "not all frequencies are above 0",
    "rope_parameters={full_attention: {rope_type: linear}}": "has no field full_attention",
    "rope_parameters=5": "rope_parameters",
    "hidden_act=foo": "hidden_act foo: is not an activation",
    "hidden_act=os.system": "is not an activation",
    "attention_dropout=5": "must be in [0, 1)",
    "attention_dropout=.nan": "must be in",
    "initializer_range=.nan": "must be in",
    "rms_norm_eps=0": "must be in",
    "pretraining_tp=0": "must be in",
    "mlp_bias=perhaps": "expected bool",
    "architectures=[x]": "has no field architectures",
    "model_type=gpt2": "has no field model_type",
    "auto_map={AutoModel: evil.Model}": "has no field auto_map",
    "_attn_implementation=evil/kernel": "has no field",
}
CONFIGS = {
    "layers.json": ({"num_hidden_layers": 0}, "num_hidden_layers 0: must be in"),
    "heads.json": ({"num_attention_heads": -4}, "num_attention_heads -4: must be in"),
    "nan.json": ({"rope_theta": float("nan")}, "rope_theta nan: must be in"),
    "act.json": ({"hidden_act": "os.system"}, "is not an activation"),
    "rope.json": ({"rope_parameters": {"rope_type": "evil"}}, "is not one of default"),
}
KWARGS = ["--activation_checkpointing", "--activation_checkpointing_kwargs"]
LARGE = ["--global_batch_tokens", "none", "--gpu_type", "h100", "--per_device_train_batch_size"]
EVERYWHERE = [  # a plan must not pass over what a run stops at
    (["--dataset", ""], "--dataset: expects a path or name"),
    (["--dataset", ":"], "a weight needs the name of its source"),
    (["--dataset", "="], "names no block store"),
    (["--dataset", "x=y:z"], "the weight 'z' is not a number"),
    (["--dataset", "a={store}:nan"], "the weight 'nan' is not a number in (0, 1e9]"),
    (["--dataset", "a={store}:0"], "the weight '0'"),
    (["--dataset", "a={store}:inf"], "the weight 'inf'"),
    (["--dataset", "a={store}:1e308", "b={store}:1e308"], "the weight '1e308'"),
    (["--dataset", "no/x", "no/y"], "a weight needs the name of its source"),
    (["--dataset", "a={store}:1", "a={store}:1"], "two sources are called a"),
    (["--dataset", *(f"n{number}={{store}}:1" for number in range(2001))], "2,001 block stores, at most 256"),
    (["--dataset", "{tmp}/texts"], "has text, not token blocks"),
    (["--dataset", "{tmp}/texts/news.txt"], "has text, not token blocks"),
    (["--dataset", "synthetic", "--block_length", "99999999999"], "must be in [2, 16777216]"),
    (["--dataset", "synthetic", "--block_length", "16777216"], "1,048,576 tokens at most"),
    (["--dataset", "synthetic", "--vocab_size", "2000000"], "must be in [260, 1e6]"),
    ([*KWARGS, "{"], "expects a JSON object"),
    ([*KWARGS, "[]"], "expects a JSON object"),
    ([*KWARGS, "[" * 100_000], "expects a JSON object"),
    ([*KWARGS, '{"every_n_layers": 0}'], "every_n_layers is 0"),
    ([*KWARGS, '{"every_n_layers": "x"}'], "every_n_layers is 'x'"),
    ([*KWARGS, '{"every_n_layers": NaN}'], "every_n_layers is nan"),
    ([*KWARGS, '{"offload": "yes"}'], "offload is 'yes'"),
    ([*KWARGS, '{"context_fn": "os.system"}'], "context_fn is not one of"),
    (["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"every_n_layers": -1}'], "every_n_layers is -1"),
    (["--fsdp", "full_shard"], "--fsdp: DeepSpeed shards"),
    (["--fsdp_config", "x.json"], "--fsdp_config: DeepSpeed shards"),
    (["--accelerator_config", "5"], "--accelerator_config: DeepSpeed"),
    (["--accelerator_config", '{"split_batches": true}'], "--accelerator_config"),
    (["--trainer_arguments", "torch_empty_cache_steps=often"], "expects a whole number"),
    (["--torch_compile_backend", "os.system"], "unknown flag"),
    (["--trainer_arguments", "log_level=foo"], "'foo' is not one of detail, debug"),
    (["--trainer_arguments", "log_level_replica=loud"], "'loud' is not one of"),
    (["--trainer_arguments", "torch_compile_backend=os.system"], "is not one of inductor"),
    (["--metric_for_best_model", "nope"], "nope: is not one of loss, perplexity"),
    (["--hub_model_id", "../x", "--push_to_hub"], "is not a repository of the Hub"),
    (["--hub_model_id", "a/b/c", "--push_to_hub"], "is not a repository of the Hub"),
    (["--hub_model_id", "alice/x", "--push_to_hub", "false"], "contradict each other"),
    (["--project", ""], "--project: expects a path or name"),
    (["--project", "x" * 1000], "longer than the 128 characters"),
    (["--run_name", "x" * 100_000], "longer than the 128 characters"),
    (["--output_dir", ""], "--output_dir: expects a path or name"),
    (["--model", "x" * 300], "File name too long"),
    (["--model", "../../no/such/model"], "not a preset"),
    (["--model", "a/b\x00c"], "without NUL"),
    (["--deepspeed", ""], "--deepspeed: expects a path or name"),
    (["--deepspeed", "/dev/null"], "is not JSON"),
    (["--max_hours", "1e9"], "must be in (0, 87600]"),
    (["--sample_tokens", "99999999999"], "must be in [1, 65536]"),
    (["--sample_prompts", ""], "--sample_prompts: one of them is empty"),
    (["--warmup_steps", "2.5"], "whole number of steps, or a share"),
    (["--save_steps", "1.5"], "whole number of steps, or a share"),
    (["--save_steps", "0"], "--save_strategy no"),
    (["--eval_steps", "nan"], "--eval_strategy no"),
    (["--logging_steps", "0"], "--logging_strategy no"),
    (["--num_train_epochs", "-1"], "--max_steps or --max_tokens"),
    (["--license", "My; rm -rf /"], "is not a license of the Hub"),
    (["--allow_changed", "everything"], "is not one of"),
    (["--attention_implementation", "evil/kernel"], "is not one of"),
    (["--sequence_parallel_size", "1024"], "must divide"),
    (["--report_to", "nope"], "is not one of"),
]
PLANS = [
    Row("plan", [*LARGE, "1000000000"], ["must be in [1, 1e6]"]),
    Row("plan", [*LARGE, "1000000"], ["does not fit 1 x h100"]),
    Row("plan", [*LARGE, "720720"], ["does not fit 1 x h100"]),
    Row("plan", ["--gpu_type", "../h100"], ["is not known"]),
    Row("plan", ["--host_memory", "9" * 400 + "GB"], ["is not a size"]),
    Row("plan", ["--host_memory", "1e5GB"], ["is not a size"]),
    Row("plan", ["--price_per_gpu_hour", "1e308"], ["must be in"]),
    Row("plan", ["--num_gpus", "65536", "--gpu_type", "h100", "--global_batch_tokens", "none"], resolved={}),
    Row("plan", ["--dataset", "{tmp}/none_yet"], resolved={}),
    Row("plan", ["--dataset", "a={tmp}/none_yet:1", "b={tmp}/nor_this:2"], resolved={}),
    Row("plan", ["--optim", "adamw_8bit"], resolved={}),
    Row("plan", [*KWARGS, '{"every_n_layers": 2, "offload": true}'], resolved={}),
    Row("plan", ["--model_overrides", "rope_theta=1e6"], resolved={}),
    Row("plan", ["--model_overrides", "rope_parameters={}"], resolved={}),  # as not given: 10,000
]
TO_THE_END = ["--max_steps", "-1"]
RUNS = [
    Row("run", [], resolved={"steps": 6, "warmup": 2}),
    Row("run", ["--max_steps", "1_0"], resolved={"steps": 10}),
    Row("run", ["--max_steps", "1000000000"], resolved={"steps": 10**9}),
    Row("run", [*TO_THE_END, "--max_tokens", "1"], resolved={"steps": 1}),
    Row("run", [*TO_THE_END, "--max_tokens", str(10**18)], resolved={"steps": 10**18 // 512}),
    Row("run", [*TO_THE_END, "--num_train_epochs", "1e-300"], resolved={"steps": 1}),
    Row("run", [*TO_THE_END, "--num_train_epochs", "1000001"], ["must be in (0, 1e6]"]),
    Row("run", ["--max_steps", "5", "--max_tokens", "5"], ["exclude each other"]),
    Row("run", ["--warmup_steps", "0"], resolved={"warmup": 0}),
    Row("run", ["--warmup_steps", "0.5"], resolved={"warmup": 3}),
    Row("run", ["--warmup_steps", "1000000000"], resolved={"warmup": 10**9}),
    Row("run", ["--learning_rate", "1e-300"], resolved={"steps": 6}),
    Row("run", ["--min_learning_rate", "0"], resolved={"last_rate": 0.0}),
    Row("run", ["--min_learning_rate", "1"], ["is above --learning_rate"]),
    Row("run", ["--lr_scheduler_type", "wsd", "--decay_steps", "1e-300"], resolved={"steps": 6}),
    Row("run", ["--lr_scheduler_type", "wsd", "--decay_steps", "1000000000"], ["are more than the 6 of the run"]),
    Row("run", ["--save_steps", "0.5", "--eval_steps", "0.3", "--logging_steps", "0.5"], resolved={"steps": 6}),
    Row("run", ["--save_strategy", "no", "--eval_strategy", "no", "--logging_strategy", "no"], resolved={"steps": 6}),
    Row("run", ["--save_total_limit", "-1"], resolved={"steps": 6}),
    Row("run", ["--save_total_limit", "-2"], ["0 or -1 keeps all"]),
    Row("run", ["--max_hours", "1e-9"], resolved={"steps": 6}),  # stops after its first step, saved
    Row("run", ["--max_hours", "87600", "--ddp_timeout", "31536000"], resolved={"steps": 6}),
    Row("run", ["--hang_timeout_minutes", "525600", "--spike_threshold", "1000000000"], resolved={"steps": 6}),
    Row("run", ["--load_best_model_at_end", "--metric_for_best_model", "eval_loss"], resolved={"steps": 6}),
    Row("run", ["--load_best_model_at_end", "--save_steps", "7", "--eval_steps", "3"], ["Trainer flags"]),
    Row("run", ["--allow_changed", "seed", "seed"], resolved={"steps": 6}),
    Row("run", ["--per_device_train_batch_size", "1000000"], ["is not a multiple of"]),
    Row("run", ["--gradient_accumulation_steps", "2"], ["follows from --global_batch_tokens"]),
    Row("run", ["--dataset", "a={store}:0.999999", "b={store}:1e-9"], ["less than one block of 1,000"]),
    Row("run", ["--dataset", "a={store}:1e9", "b={store}:1e9"], resolved={"steps": 6}),
    Row("run", ["--optim", "adamw_8bit"], ["needs bitsandbytes"]),
    Row(
        "run",
        ["--save_strategy", "epoch"],
        ["'epoch' is not one of no, steps, best; epochs follow each other", "use steps and --save_steps N"],
    ),
    Row("run", ["--dataloader_prefetch_factor", "5"], ["Trainer flags"]),
    Row("run", ["--ddp_backend", "foo"], ["DeepSpeed reduces the gradients"]),
    Row("run", ["--output_dir", "n" * 300], ["File name too long"]),
    Row("run", ["--resume", "x" * 300], ["File name too long"]),
    Row("run", ["--resume", "{tmp}/none"], ["checkpoint is incomplete"]),
    Row("run", ["--recipe", "/dev/null"], ["--recipe /dev/null"]),
    Row("run", ["--debug", "maybe"], ["unexpected value"]),
]
OTHERS = [
    Row("generate", ["--top_p", "1e-308"], ["must be in [1e-06, 1]"]),
    Row("generate", ["--top_p", "1e-6"], resolved={"tokens": [999, 999]}),
    Row("generate", ["--temperature", "1e-320"], ["must be in", "--greedy draws nothing"]),
    Row("generate", ["--temperature", "1e-6"], resolved={"tokens": [999, 999]}),
    Row("generate", ["--temperature", "1000000", "--top_k", "0", "--top_p", "1"], resolved={}),
    Row("generate", ["--repetition_penalty", "0.01"], resolved={}),
    Row("generate", ["--top_k", "1000000000"], resolved={}),
    Row("generate", ["--min_p", "1"], resolved={"tokens": [999, 999]}),
    Row("generate", ["--num_samples", "1000000000"], ["must be in [1, 1e6]"]),
    Row("generate", ["--num_beams", "9000"], ["must be in [1, 256]"]),
    Row("generate", ["--prompt", "\udcff"], ["--prompt: expects UTF-8"]),
    Row("generate", ["--stop", ""], ["--stop: is empty"]),
    Row("finetune", ["--adam_beta2", "2"], ["--adam_beta2 2: must be in [0, 1)"]),
    Row("finetune", ["--fsdp", "full_shard"], ["DeepSpeed shards"]),
    Row("preprocess", ["--near_duplicates", "0.9999999"], ["must be in [0.01, 0.98]"]),
    Row("preprocess", ["--num_workers", "1000000"], ["must be in [1, 1024]"]),
    Row("preprocess", ["--min_characters", "9", "--max_characters", "8"], ["is less than --min_characters"]),
    Row("train_tokenizer", ["--vocab_size", "259"], ["must be in [260, 1e6]"]),
]
OTHERS += [Row(program, words, [part]) for words, part in EVERYWHERE for program in ("plan", "run")]
OTHERS += [
    Row(program, ["--model_overrides", text], [part]) for text, part in OVERRIDES.items() for program in ("plan", "run")
]
NO_SHAPE = ["--model_overrides", "vocab_size=8192"]  # in place of those that would hide what a config has
OTHERS += [Row("plan", ["--model", f"{{tmp}}/{name}", *NO_SHAPE], [part]) for name, (_, part) in CONFIGS.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is there before, and must be there after."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "texts").mkdir()
    (folder / "texts" / "news.txt").write_text("a text\n")
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("of three years\n")
    for name, (fields, _) in CONFIGS.items():
        (folder / name).write_text(json.dumps({"model_type": "llama", **fields}))
    return folder


def outcomes(rows: list[Row], folder: Path, store: Path) -> list[dict[str, Any]]:
    """How each row ended, in one child process."""
    places = {"{store}": str(store), "{tmp}": str(folder)}
    lines = []
    for row in rows:
        words = [*BASE.get(row.program, []), *row.words]
        for name, place in places.items():
            words = [word.replace(name, place) for word in words]
        lines.append(json.dumps([row.program, words]) + "\n")
    command = [sys.executable, "-m", "tests.adversarial.drivers.command_lines"]
    done = run_forked(*command, cwd=folder, env={"XDG_CACHE_HOME": str(folder / "cache")}, stdin="".join(lines))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    last = rows[len(found) - 1 : len(found) + 1]
    assert len(found) == len(rows), f"ended at {last}: {done.stderr[-3000:]}"
    return found


@pytest.mark.guarantee("Odd command lines end in one line or work.")
def test_odd_command_lines_end_in_one_line_or_in_what_is_listed(sample_store: Path, folder: Path) -> None:
    rows = [Row("run", [], resolved={}), *numeric_rows(), *PLANS, *RUNS, *OTHERS]
    assert len(rows) > 1000
    before = contents(folder)
    found = outcomes(rows, folder, sample_store)
    assert [wrong for row, how in zip(rows, found, strict=True) if (wrong := mistake(row, how))] == []
    assert contents(folder) == before
    assert [row for row, how in zip(rows[1:], found[1:], strict=True) if how["actions"]] == []  # 1: DeepSpeed starts


def mistake(row: Row, outcome: dict[str, Any]) -> str:
    """What is wrong with how a row ended, "" if nothing is."""
    what, words = outcome["what"], [word[:50] for word in row.words]
    if row.resolved is not None:
        fine = outcome["how"] == "accepted" and row.resolved.items() <= (what or {}).items()
    else:
        short = outcome["how"] == "refused" and all(len(problem) < 700 and "\n" not in problem for problem in what)
        fine = short and any(all(part in problem for part in row.parts) for problem in what)
    return "" if fine else f"{row.program} {words}: {outcome['how']} {str(what)[:300]} in {outcome['seconds']} s"


def contents(folder: Path) -> dict[str, str]:
    """Each file with what is in it."""
    return {str(path): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}
