"""Models, tokenizers, chat templates, recipes and checkpoint lists of others: no code of theirs, and always an end."""

import copy
import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining.cli.arguments.finetune import parse_finetune_arguments
from pretraining.cli.arguments.pretrain import ModelArguments
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.finetuning.inputs import find_inputs_of
from pretraining.finetuning.pipeline import make_blocks
from pretraining.generation import chat_template as chat_format
from pretraining.generation.load_model import load_model
from pretraining.runs.checksums import COMPLETE_NAME, incomplete_reason, record_file, write_manifest
from pretraining.runs.export.from_checkpoint import export_checkpoint
from pretraining.runs.export.model_folder import tokenizer_of
from pretraining.runs.model_source import find_model
from pretraining.training.model.build import load_model_config
from pretraining.training.model.parent import find_parent
from tests.conftest import PROJECT_DIR, assert_one_error, python
from tests.fakes.exported import export_random_model
from tests.programs.launching import run_forked

SAMPLE_TOKENIZER = PROJECT_DIR / "data/sample/tokenizer"


@pytest.fixture(scope="module")
def model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_random_model(tmp_path_factory.mktemp("exported") / "model", sample_store)


def with_fields(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def assert_refused(read: Callable[[], object], *parts: str) -> None:
    with pytest.raises(UserError) as refused:
        read()
    assert len(refused.value.problems) == 1
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in parts), refused.value


AUTO_MAP = {"AutoModelForCausalLM": "evil/repo--modeling.Evil"}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "auto_map", AUTO_MAP),
        ("config.json", "auto_map", None),
        ("config.json", "attn_implementation", "evil/kernel"),
        ("config.json", "_attn_implementation", {"": "evil/kernel@main:forward"}),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil/repo--tokenizer.Evil", None]}),
    ],
)
@pytest.mark.guarantee("No code from a model, tokenizer or template is executed.")
def test_no_program_takes_a_model_that_asks_for_code(
    name: str, field: str, value: Any, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    with_fields(folder, name, **{field: value})
    parts = (f"{name}: asks for custom code ({field})", f"remove {field} from a copy")
    assert_refused(lambda: find_model(str(folder)), f"--model {folder}", *parts)
    assert_refused(
        lambda: find_parent(str(folder), flag="--weights", needs_tokenizer=True), f"--weights {folder}", *parts
    )
    if name == "config.json":
        assert_refused(lambda: load_model_config(ModelArguments(model=str(folder)), None), *parts)


def test_an_export_never_asks_for_code(model: Path, tmp_path: Path) -> None:
    """Neither from the config of a checkpoint nor from the record of its run, nor from the tokenizer beside it."""
    checkpoint = tmp_path / "run/checkpoint-1"
    shutil.copytree(model, checkpoint)
    fields, out = json.loads((model / "config.json").read_text()), tmp_path / "out"

    def assert_no_export() -> None:
        complete(checkpoint)
        assert_refused(lambda: export_checkpoint(checkpoint, out, dtype=torch.float32), "asks for custom code")
        assert not out.exists()

    with_fields(checkpoint, "config.json", auto_map=AUTO_MAP)
    assert_no_export()
    (checkpoint / "config.json").unlink()
    identity = {"model_config": fields | {"auto_map": AUTO_MAP}, "precision": "fp32"}
    with_fields(tmp_path / "run", "run.json", identity=identity)
    assert_no_export()
    with_fields(checkpoint, "tokenizer_config.json", auto_map=AUTO_MAP)
    assert_refused(lambda: tokenizer_of(checkpoint), "tokenizer_config.json: asks for custom code")
    with pytest.raises(UserError, match="a Llama config has no field auto_map"):
        load_model_config(ModelArguments(model="quickstart", model_overrides=["auto_map={}"]), None)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "config.json", 7, None]
)
def test_an_index_names_files_of_its_folder(name: Any, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    shutil.copytree(model, tmp_path / "other")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert_refused(lambda: find_model(str(folder)), f"--model {folder}: model.safetensors.index.json names")
    (folder / "model.safetensors.index.json").write_text("[")
    assert_refused(lambda: find_model(str(folder)), "model.safetensors.index.json is not a JSON object")


def complete(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE_NAME]
    write_manifest(folder, [record_file(folder, path) for path in files], step=1, num_processes=1)
    return json.loads((folder / COMPLETE_NAME).read_text())


def listing(path: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, "files": [*content["files"], {**content["files"][0], "path": path}]}


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda content: {**content, "files": []},
    "files of another type": lambda content: {**content, "files": {"a": 1}},
    "no list of files": lambda content: {name: value for name, value in content.items() if name != "files"},
    "a file without a path": lambda content: {**content, "files": [{"num_bytes": 1}]},
    "sizes as text": lambda content: {**content, "files": [{**file, "num_bytes": "1"} for file in content["files"]]},
    "no number of processes": lambda content: {**content, "num_processes": None},
    "another version": lambda content: {**content, "format_version": 2},
    "a list": lambda content: [content],
    "nested": lambda _: "[" * 100_000,
    "cut": lambda content: json.dumps(content)[:-20],
    "an absolute path": listing("/etc/passwd"),
    "a path out of the folder": listing("a/../../other/config.json"),
    "a path of another type": listing(["config.json"]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_list_of_files_is_one_line(damage: Callable[[Any], Any], model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "checkpoint-1")
    content = damage(complete(folder))
    assert incomplete_reason(folder) is None
    (folder / COMPLETE_NAME).write_text(content if isinstance(content, str) else json.dumps(content))
    assert f"{COMPLETE_NAME} cannot be read" in str(incomplete_reason(folder))
    assert_refused(lambda: find_model(str(folder)), f"--model {folder}", COMPLETE_NAME)


def test_a_link_out_of_a_checkpoint_does_not_count(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "checkpoint-1")
    complete(folder)
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    assert incomplete_reason(folder) == "config.json is a link out of the folder"
    (tmp_path / "link").symlink_to(shutil.copytree(model, tmp_path / "checkpoint-2"))
    complete(tmp_path / "checkpoint-2")
    assert incomplete_reason(tmp_path / "link") is None, "the folder itself may be elsewhere"


PANICS: dict[str, dict[str, Any]] = {
    "when it is opened": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "when it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}


@pytest.mark.parametrize("fields", PANICS.values(), ids=PANICS.keys())
def test_a_panic_of_a_tokenizer_is_one_line(fields: dict[str, Any], model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    with_fields(folder, "tokenizer.json", **copy.deepcopy(fields))
    if "pre_tokenizer" in fields:  # without the canary of this suite, as models of others come
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("canary")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert_refused(lambda: load_document_tokenizer(str(folder), add_bos=False), f"--tokenizer {folder}: ", "cannot be")
    assert_refused(lambda: load_model(find_model(str(folder))), f"--model {folder}: the model cannot be read")
    assert_refused(lambda: blocks_of(folder, tmp_path), f"--model {folder}: ", "cannot be read")


def blocks_of(model_dir: Path, folder: Path) -> Path:
    path = folder / "chat.jsonl"
    path.write_text(json.dumps({"prompt": "Who?", "response": "The council."}) + "\n")
    words = ["--model", model_dir, "--data_files", path, "--output_dir", folder / "run", "--split", "1,0,0"]
    arguments = parse_finetune_arguments("", [str(word) for word in words])
    return make_blocks(arguments.conversations, find_inputs_of(arguments))


MARKED = "{% generation %}{% endgeneration %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
DOUBLING = "{% set x = namespace(v='a' * 999) %}{% for i in range(99) %}{% set x.v = x.v + x.v %}{% endfor %}"
TEMPLATES: dict[str, tuple[Any, str]] = {
    "endless": (ENDLESS + MARKED, "takes too long"),
    "endless by recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}" + MARKED, "RecursionError"),
    "a huge text": ("{{ 'a' * 10**10 }}" + MARKED, "needs too much memory"),
    "a huge list": ("{{ ([0] * 10**10)|length }}" + MARKED, "needs too much memory"),
    "a huge format": ("{{ '{:>9999999999}'.format('a')|length }}" + MARKED, "needs too much memory"),
    "a doubling": (DOUBLING + MARKED, "needs too much memory"),
    "a long text": ("{{ 'a' * 10**7 }}" + MARKED, "writes 10,000,000 characters"),
    "out of the sandbox": ("{{ ''.__class__.__mro__ }}" + MARKED, "SecurityError"),
    "out by a format": ("{{ '{0.__class__.__mro__}'.format('') }}" + MARKED, "SecurityError"),
    "syntax": ("{% if %}" + MARKED, "TemplateSyntaxError"),
    "a wrong type": ("{{ 1 + 'a' }}" + MARKED, "TypeError"),
    "its own error": ("{{ raise_exception('no') }}" + MARKED, "TemplateError: no"),
    "a list": ([1], "its tokenizer or chat template cannot be read"),
    "a number": (7, "chat template"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "part"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_chat_template_ends_in_bounded_time_and_memory(
    template: Any, part: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_format, "SECONDS", 0.5)
    folder = shutil.copytree(model, tmp_path / "model")
    with_fields(folder, "tokenizer_config.json", chat_template=template)
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    assert_refused(lambda: blocks_of(folder, tmp_path), "--model", part)
    assert time.process_time() - began < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < 2 * chat_format.SPARE_BYTES
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert not (tmp_path / "run/blocks").exists()


def test_a_hook_that_exits_shows_no_document_and_passes_no_code(tmp_path: Path) -> None:
    """Named by a recipe, which says that it runs code before it does."""
    (tmp_path / "data.jsonl").write_text('{"text": "a private text"}\n')
    recipe = tmp_path / "recipe.yaml"
    fields = {"language_hook": "sys:exit", "languages": ["en"], "data_files": [str(tmp_path / "data.jsonl")]}
    recipe.write_text(json.dumps(fields))
    done = run_forked(*python("preprocess.py", "--recipe", recipe, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, "--language_hook sys:exit: the function exits; use another one")
    assert done.returncode == 2
    assert f"warning: recipe {recipe} runs code: --language_hook sys:exit\n" in done.output
    assert done.output.index("runs code") < done.output.index("exits;")
    assert "private" not in done.output
    recipe.write_text(json.dumps({"output_dir": str(tmp_path / "blocks")}))
    hook = ["--language_hook", f"{tmp_path.name}_nothing:of", "--languages", "en"]
    assert "runs code" not in run_forked(*python("preprocess.py", "--recipe", recipe, *hook)).output, (
        "who types it knows"
    )
    assert "is executed" in run_forked(*python("preprocess.py", "--help"), env={"COLUMNS": "200"}).output
