"""No program unpickles, evaluates or loads code of others but where the one module for it does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR

# Who may, and why.
ALLOWED = {
    ("pretraining/runs/untrusted.py", "torch.load"),  # the one place, with weights_only=True
    ("pretraining/doctor/runner.py", ".recv()"),  # from its own child, through a pipe that nobody else has
    ("pretraining/data/build/processes.py", ".recv()"),  # between it and its own children
    ("pretraining/system/compiled/cache.py", "import_module"),  # modules of this program, named in its code
    ("pretraining/system/compiled/compiler.py", "import_module"),  # the same, in a separate process
    ("pretraining/data/input/filters.py", "import_module"),  # --language_hook, which says that it runs code
}
UNPICKLING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy"}
LOADERS = {"read_pickle", "unsafe_load", "full_load", "deepspeed_load_checkpoint", "import_module", "load_module"}
LOADERS |= {"get_fp32_state_dict_from_zero_checkpoint", "load_state_dict_from_zero_checkpoint", "eval", "exec"}


def sources() -> list[Path]:
    programs, packages = PROJECT_DIR.glob("*.py"), ("pretraining", "tools")
    return sorted([*programs, *(path for name in packages for path in (PROJECT_DIR / name).rglob("*.py"))])


def found_in(tree: ast.AST) -> Iterator[str]:
    """What unpickles or runs what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from (module for module in modules if module.split(".")[0] in UNPICKLING_MODULES)
            yield from (f"from {modules[0]}" for name in names if isinstance(node, ast.ImportFrom) and name == "load")
        if isinstance(node, ast.Call):
            yield from found_in_call(node)


def found_in_call(call: ast.Call) -> Iterator[str]:
    target, keywords = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    name = target.rpartition(".")[2]
    if name == "load" and target.split(".")[0] in ("torch", "yaml"):
        yield target
    if target in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        yield target
    if name == "recv" and not call.args:
        yield ".recv()"
    if name in LOADERS and (target == name or name not in ("eval", "exec")):
        yield name
    for keyword in ("weights_only", "trust_remote_code", "use_safetensors", "allow_pickle"):
        if keywords.get(keyword) in ({"False"} if keyword in ("weights_only", "use_safetensors") else {"True"}):
            yield f"{keyword}={keywords[keyword]}"


@pytest.mark.guarantee("Only one function opens pickles.")
def test_nothing_else_unpickles() -> None:
    found = set()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {(str(path.relative_to(PROJECT_DIR)), what) for what in found_in(tree)}
    assert found == ALLOWED
    assert len(sources()) > 150


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "torch.load(path)",
        "from torch import load",
        "import pickle",
        "from pickle import loads",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.jit.load(path)",
        "yaml.load(text, Loader)",
        "connection.recv()",
        "eval(text)",
        "Model.from_pretrained(name, trust_remote_code=True)",
        "Model.from_pretrained(name, use_safetensors=False)",
        "deepspeed_load_checkpoint(engine, path)",
    ],
)
def test_each_way_is_noticed(line: str) -> None:
    assert list(found_in(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["np.load(path, allow_pickle=False)", "yaml.safe_load(text)", "json.load(file)", "socket.recv(4)"]
)
def test_what_runs_nothing_is_none(line: str) -> None:
    assert not list(found_in(ast.parse(line)))
