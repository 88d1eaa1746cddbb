#!/usr/bin/env python3
"""What the host waits for within a micro step, counted on a CPU that pretends to be a GPU.

    python3 -m benchmarks.host_waits

Trains small models with the proportions of TinyLlama-1.1B, Llama-2-7B, 13B and 70B by pretrain.py's own trainer and
DeepSpeed config: 1/64 of each width, 1/4096 of each size in numbers of weights, six layers. Each run takes one or two
processes (benchmarks/host_waits_run.py). Nothing is timed. Exits with 2 when a bound is exceeded. Writes
docs/benchmarks/host_waits.md.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.results import PROJECT_DIR, command_line, table, versions, write_section
from pretraining.cli.deepspeed_config import load_ds_config
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError, raise_problems
from pretraining.planning.flops import layer_parameters
from pretraining.planning.layout import resolve_auto
from pretraining.system.launchers import free_port
from pretraining.training.model.fields import DEFAULTS, load_presets

logger = logging.getLogger("pretraining.benchmarks")

MODELS = ("tinyllama_1b", "llama2_7b", "llama2_13b", "llama2_70b")
SCALE = 64  # of widths and the vocabulary; sizes in numbers of weights are divided by its square
NUM_LAYERS = 6
BLOCK_LENGTH, NUM_MICRO_STEPS = 64, 4
SIZES = (
    *("sub_group_size", "reduce_bucket_size", "stage3_prefetch_bucket_size"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
)
MIN_LAYERS_BACK = 2
MAX_BYTES_PER_PARAMETER = 6.0  # of a single process with sums in bf16: read a gradient and its sum, write the sum
AT_ONCE = 2
SECTION = "As it is"
COLUMNS = (
    *("model", "processes", "event waits", "waits for gathers", "nearest, layers back", "syncs"),
    *("host reads", "weights gathered late", "gradient bytes per parameter", "collectives of gradients"),
)
NOTES = """
One micro step, neither the first nor the last of its step, with gradients added up in bf16. Event waits are for the
reduction of gradients. "2 layers back" means that the GPU has two more layers to compute when the host is back. Weights
gathered late are those of a layer that were not asked for before the layer starts, in both passes, as a share of all
weights. The bytes of gradients are those read and written on the GPU after a layer's backward; with two processes
messages of a whole layer are concatenated once more than small ones.
"""


@dataclass(frozen=True)
class HostWaitsArguments:
    """Flags of this benchmark."""

    models: list[str] = flag(list(MODELS), "presets whose proportions are trained")
    deepspeed: str = flag("ds_config.json", "DeepSpeed config to check; its numbers are scaled down as well")
    output: Path = flag(Path("docs/benchmarks/host_waits.md"), "page to write")


@dataclass(frozen=True)
class Run:
    """One model in one or two processes."""

    model: str
    num_processes: int
    found: dict[str, Any]

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes that gradients move on the GPU, read and written, per parameter of the model."""
        return self.found["gradient_bytes"] / self.found["num_parameters"]

    def cells(self) -> list[str]:
        """Its row in the table."""
        counts, back = self.found["counts"], self.found["layers_back"]
        stops = sum(count for kind, count in counts.items() if kind.endswith("synchronization"))
        return [
            *(self.model, str(self.num_processes)),
            *(
                str(counts.get("event wait", 0)),
                str(counts.get("wait for a gather", 0)),
                str(min(back)) if back else "",
            ),
            *(str(stops), str(counts.get("host read", 0))),
            f"{100 * self.found['late_weights'] / self.found['num_parameters']:.1f} %",
            *(f"{self.bytes_per_parameter:.1f}", str(self.found["collectives"])),
        ]

    def problems(self) -> Iterator[str]:
        """Each bound that is exceeded, and the code that does it."""
        place = f"{self.model} in {self.num_processes} process{'es' * (self.num_processes != 1)}"
        for where, number in self.found["places"].items():
            if not where.startswith(("event wait", "wait for a gather")):
                yield f"{place}: {number} x {where} per micro step; none is allowed"
        near = [layers for layers in self.found["layers_back"] if layers < MIN_LAYERS_BACK]
        if near:
            yield f"{place}: {len(near)} event waits {min(near)} layers back; raise reduce_bucket_size to one layer"
        if self.found["late_weights"]:
            yield f"{place}: {self.found['late_weights']} weights gathered late; raise stage3_prefetch_bucket_size"
        if not self.found["gathers_follow_step"]:
            yield f"{place}: the stream that gathers weights does not wait for the step that writes them"
        if self.num_processes == 1 and self.bytes_per_parameter > MAX_BYTES_PER_PARAMETER:
            yield f"{place}: gradients move {self.bytes_per_parameter:.1f} bytes per parameter; at most 6 are needed"


def main(argv: Sequence[str]) -> None:
    """Train all, write the table, and check the bounds."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Benchmark", HostWaitsArguments)], argv)
    with tempfile.TemporaryDirectory() as folder:
        make_blocks(Path(folder))
        pairs = [(model, num) for num in (1, 2) for model in arguments.models]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = list(pool.map(lambda pair: train(pair[0], pair[1], arguments.deepspeed, Path(folder)), pairs))
    text = f"{versions(('torch', 'deepspeed', 'transformers'))}.\n\n{command_line('host_waits')}\n\n"
    text += table(COLUMNS, [run.cells() for run in runs]) + "\n" + NOTES
    write_section(arguments.output, SECTION, text)
    for line in text.splitlines():
        logger.info("%s", line)
    raise_problems(problem for run in runs for problem in run.problems())


def make_blocks(folder: Path) -> None:
    """Write a block store of the sample corpus with a vocabulary of the scaled size."""
    data = ["--data_files", str(PROJECT_DIR / "data/sample/news.jsonl")]
    vocabulary = str(DEFAULTS["vocab_size"] // SCALE)
    _run(["train_tokenizer.py", *data, "--vocab_size", vocabulary, "--output_dir", str(folder / "tokenizer")])
    blocks = ["--block_length", str(BLOCK_LENGTH), "--output_dir", str(folder / "blocks")]
    _run(["preprocess.py", *data, "--tokenizer", str(folder / "tokenizer"), *blocks])


def launch(num_processes: int, words: Sequence[str]) -> None:
    """Run a module in one process, or in several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", f"--master_port={free_port()}"]
    _run([*(torchrun if num_processes > 1 else []), *words])


def train(
    model: str,
    num_processes: int,
    ds_config: str,
    folder: Path,
    *,
    start: Callable[[int, Sequence[str]], None] = launch,
) -> Run:
    """Run benchmarks.host_waits_run, and read what it counted."""
    name = f"{model}-{num_processes}"
    result, config_path = folder / f"{name}.json", folder / f"{name}-ds.json"
    config_path.write_text(json.dumps(scaled_config(ds_config, model)))
    overrides = [f"{name}={value}" for name, value in small_fields(model).items()]
    words: list[Any] = ["-m", "benchmarks.host_waits_run", result]
    words += ["--model", "quickstart", "--model_overrides", *overrides]
    words += ["--dataset", folder / "blocks", "--output_dir", folder / name, "--deepspeed", config_path]
    words += ["--bf16", "true", "--grad_accum_dtype", "bf16", "--per_device_train_batch_size", "1"]
    words += ["--global_batch_tokens", BLOCK_LENGTH * NUM_MICRO_STEPS * num_processes, "--max_steps", "4"]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--export", "false", "--report", "false"]
    start(num_processes, [str(word) for word in words])
    return Run(model, num_processes, json.loads(result.read_text()))


def scaled_config(path: str, model: str) -> dict[str, Any]:
    """A DeepSpeed config with the sizes that the full model gets, divided like the number of its weights."""
    config, full, small = load_ds_config(path), _shape(full_fields(model)), _shape(small_fields(model))
    zero = resolve_auto(config["zero_optimization"], full)
    # By the layers, as norms are divided by 64 only.
    ratio = Fraction(layer_parameters(small), layer_parameters(full))
    config["zero_optimization"] |= {size: max(1, round(zero[size] * ratio)) for size in SIZES if size in zero}
    return config


def full_fields(model: str) -> dict[str, int]:
    """The fields of a preset that decide sizes, and the width of a head."""
    fields = {name: value for name, value in load_presets()[model].items() if isinstance(value, int)}
    return {**fields, "head_dim": fields["hidden_size"] // fields["num_attention_heads"]}


def small_fields(model: str) -> dict[str, int]:
    """Those of the small model; heads are so narrow that all keys together have 1/64 of their width."""
    full = full_fields(model)
    hidden, keys = full["hidden_size"] // SCALE, full["num_key_value_heads"] * full["head_dim"] // SCALE
    width = min(16, keys)
    fields = {"hidden_size": hidden, "intermediate_size": full["intermediate_size"] // SCALE, "head_dim": width}
    heads = {"num_attention_heads": hidden // width, "num_key_value_heads": keys // width}
    return {**fields, **heads, "num_hidden_layers": NUM_LAYERS, "vocab_size": full["vocab_size"] // SCALE}


def _shape(fields: dict[str, int]) -> Any:
    return SimpleNamespace(**{**DEFAULTS, **fields})


def _run(words: Sequence[str]) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{words[0]} {words[1]} failed: {(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    run_program(main)
