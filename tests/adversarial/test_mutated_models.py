"""Damaged models, tokenizers and recipes: each is one line, or is taken as far as it is whole; nothing crashes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.adversarial.drivers.mutations import mutations, num_mutations
from tests.conftest import PROJECT_DIR

# Reads each file named on stdin as the programs do, and answers each with a line; a panic or a crash ends it.
READERS = """
import faulthandler, os, sys
faulthandler.enable()
from pathlib import Path
from pretraining.errors import UserError
kind, folder = sys.argv[1], Path(sys.argv[2])

def read_tokenizer():
    from pretraining.data.tokenize.tokenizer import load_document_tokenizer
    load_document_tokenizer(str(folder), add_bos=True).encode(["a b  c\\u00e9 </s>"])

def read_config():
    from pretraining.cli.arguments.pretrain import ModelArguments
    from pretraining.runs.export.zero_shards import config_of_checkpoint
    from pretraining.training.model.build import load_model_config
    load_model_config(ModelArguments(model=str(folder)), None)
    config_of_checkpoint(folder)

def read_recipe():
    from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
    parse_pretrain_arguments("", ["--recipe", str(folder / "recipe.yaml")])

reader = {"tokenizer.json": read_tokenizer, "config.json": read_config, "recipe.yaml": read_recipe}[kind]
for _ in sys.stdin:
    try:
        reader()
        answer = "fine"
    except UserError as error:
        problems = [problem for problem in error.problems if "\\n" in problem or not problem]
        answer = f"several lines: {problems}" if problems else "refused"
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print("ANSWER", " ".join(answer.split())[:300], flush=True)
"""


class Reader:
    """A child process that reads a folder again and again."""

    def __init__(self, kind: str, folder: Path) -> None:
        words = [sys.executable, "-c", READERS, kind, str(folder)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
        self._process = subprocess.Popen(
            words,
            cwd=PROJECT_DIR,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self) -> str:
        """What came of it: "fine", "refused", or what is wrong with the program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return line.removeprefix("ANSWER ").strip()
        return f"the process died with {self._process.wait()}"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def reader() -> Iterator[Callable[..., Reader]]:
    started: list[Reader] = []

    def start(kind: str, folder: Path) -> Reader:
        started.append(Reader(kind, folder))
        return started[-1]

    yield start
    for process in started:
        process.end()


def check(reader: Reader, path: Path, variants: Iterator[bytes], record: Callable[[str, object], None]) -> None:
    """Read the file as it is, which works, and each variant in its place, which is taken or refused."""
    assert reader.read() == "fine"
    answers = []
    for content in variants:
        path.write_bytes(content)
        answer = reader.read()
        answers.append(answer)
        assert answer in ("fine", "refused"), content[:2000]
    record("tried", len(answers))
    assert answers.count("refused") > len(answers) // 10


@pytest.mark.guarantee("Mutated models end in one line or work.")
def test_tokenizers(
    reader: Callable[..., Reader], sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for path in (sample_store / "tokenizer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.json"
    variants = islice(mutations(small_tokenizer(path), seed=1), num_mutations(3000))
    check(reader("tokenizer.json", tmp_path), path, variants, record_property)


def small_tokenizer(path: Path) -> bytes:
    """The tokenizer with few merges, so that its other parts are found by mutations as well."""
    content = json.loads(path.read_bytes())
    model = content["model"]
    model["merges"] = model["merges"][:20]
    kept = {piece for merge in model["merges"] for piece in (*merge, "".join(merge))}
    special = {token["content"] for token in content["added_tokens"]}
    model["vocab"] = {
        piece: number for piece, number in model["vocab"].items() if number < 300 or piece in kept | special
    }
    text = json.dumps(content).encode()
    path.write_bytes(text)
    return text


def test_model_configs(
    reader: Callable[..., Reader], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    fields = {
        "model_type": "llama", "vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
        "hidden_act": "silu", "attention_bias": False, "initializer_range": 0.02, "head_dim": 8,
        "bos_token_id": 1, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"], "dtype": "float32",
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    variants = islice(mutations(path.read_bytes(), seed=2), num_mutations(1500))
    check(reader("config.json", tmp_path), path, variants, record_property)


def test_recipes(reader: Callable[..., Reader], tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    path = tmp_path / "recipe.yaml"
    fields = {
        "model": "quickstart", "model_overrides": ["hidden_size=32", "rope_theta=10000"], "output_dir": "runs/x",
        "dataset": ["a=x:0.5", "b=y:0.5"], "max_steps": 160, "learning_rate": 3e-3, "bf16": False, "loss_tiles": 4,
        "activation_checkpointing_kwargs": {"every_n_layers": 2}, "report_to": ["tensorboard"],
    }  # fmt: skip
    recipe = json.dumps(fields)
    path.write_text(recipe)
    variants = islice(mutations(recipe.encode(), seed=3), num_mutations(750))
    check(reader("recipe.yaml", tmp_path), path, variants, record_property)
