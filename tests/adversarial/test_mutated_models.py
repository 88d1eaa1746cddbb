"""Damaged models, tokenizers and recipes: each is one line, or is taken as far as it is whole; nothing crashes."""

import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import pytest

from tests.adversarial.drivers.mutations import mutations, num_mutations
from tests.programs.launching import run_forked

# Puts each variant in the place of the file and reads it as the programs do; a panic or a crash ends it.
READERS = """
import faulthandler, shutil, sys
faulthandler.enable()
from pathlib import Path
from huggingface_hub import constants
from pretraining.errors import UserError
constants.HF_HUB_OFFLINE = True
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
for line in sys.stdin:
    shutil.copy(line.strip(), folder / kind)
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


def check(path: Path, variants: Iterable[bytes], folder: Path, record: Callable[[str, object], None]) -> None:
    """Read the file as it is, which works, and each variant in its place, which is taken or refused."""
    contents = [path.read_bytes(), *variants]
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
    script = folder / "readers.py"
    script.write_text(READERS)
    names = "".join(f"{folder / str(number)}\n" for number in range(len(contents)))
    done = run_forked(sys.executable, script, path.name, path.parent, stdin=names)
    answers = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == len(contents), (done.returncode, contents[len(answers)][:2000], done.log[-2000:])
    record("tried", len(answers) - 1)
    assert answers[0] == "fine"
    assert [
        (answer, content[:2000]) for answer, content in zip(answers, contents, strict=True) if not is_fine(answer)
    ] == []
    assert answers.count("refused") > len(answers) // 10


def is_fine(answer: str) -> bool:
    return answer in ("fine", "refused")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the variants, beside the folder that is read."""
    return tmp_path_factory.mktemp("variants")


@pytest.mark.guarantee("Mutated models end in one line or work.")
def test_tokenizers(
    sample_store: Path, folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for path in (sample_store / "tokenizer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.json"
    variants = islice(mutations(small_tokenizer(path), seed=1), num_mutations(3000))
    check(path, variants, folder, record_property)


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


def test_model_configs(folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
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
    check(path, variants, folder, record_property)


def test_recipes(folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    path = tmp_path / "recipe.yaml"
    fields = {
        "model": "quickstart", "model_overrides": ["hidden_size=32", "rope_theta=10000"], "output_dir": "runs/x",
        "dataset": ["a=x:0.5", "b=y:0.5"], "max_steps": 160, "learning_rate": 3e-3, "bf16": False, "loss_tiles": 4,
        "activation_checkpointing_kwargs": {"every_n_layers": 2}, "report_to": ["tensorboard"],
    }  # fmt: skip
    recipe = json.dumps(fields)
    path.write_text(recipe)
    variants = islice(mutations(recipe.encode(), seed=3), num_mutations(750))
    check(path, variants, folder, record_property)
