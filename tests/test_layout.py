"""The house holds together: small rooms, arrows that run one way, data rooms without torch, a README of them all."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR

PACKAGE = PROJECT_DIR / "pretraining"
ROOMS = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
TOOLS = sorted(path for path in (PROJECT_DIR / "tools").glob("*.py") if path.name != "__init__.py")
SCRIPTS = ("preprocess.py", "pretrain.py", "finetune.py", "generate.py", "train_tokenizer.py")
PROGRAMS = [PROJECT_DIR / name for name in SCRIPTS]
MAX_LINES = 250
MAX_MAIN_LINES = 30
# Which wings a wing may import, itself aside.
ARROWS = {
    "errors": set(),
    "system": set(),
    "cli": set(),
    "corpus": {"cli"},
    "machine": {"cli"},
    "runs": {"cli"},
    "training": {"cli", "corpus", "machine", "runs"},
    "tuning": {"cli", "corpus", "runs", "training"},
    "sampling": {"cli", "machine", "runs"},
    "judging": {"cli", "corpus", "sampling", "training"},
    "doctor": {"cli", "machine", "corpus"},
}
BELOW_ALL = {"errors", "system"}  # which every wing may import
WITHOUT_TORCH = {"errors", "system", "cli", "corpus", "machine"}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_rooms_are_small() -> None:
    assert len(ROOMS) > 30
    sizes = {str(path): len(path.read_text().splitlines()) for path in [*ROOMS, *TOOLS, *PROGRAMS]}
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


@pytest.mark.parametrize("path", [*PROGRAMS, *TOOLS], ids=lambda path: path.name)
def test_programs_read_as_a_story(path: Path) -> None:
    (main,) = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "main"]
    assert main.end_lineno - main.lineno < MAX_MAIN_LINES


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_run_one_way() -> None:
    assert {wing_of(path) for path in ROOMS} == set(ARROWS)
    for path in ROOMS:
        wing = wing_of(path)
        wings = {name.split(".")[1] for name in imported_modules(path) if name.startswith("pretraining.")}
        assert wings <= ARROWS[wing] | {wing} | BELOW_ALL, path
    for path in ROOMS:
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert not tops & {"preprocess", "pretrain", "finetune", "generate", "train_tokenizer", "tools"}, path


def test_data_rooms_import_no_torch() -> None:
    rooms = [".".join(path.relative_to(PROJECT_DIR).with_suffix("").parts) for path in ROOMS]
    names = [room for room in rooms if room.split(".")[1] in WITHOUT_TORCH]
    script = f"import sys\nfor name in {names}: __import__(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_wing_says_what_it_owns() -> None:
    for folder in [*(path for path in PACKAGE.iterdir() if path.name in ARROWS), PROJECT_DIR / "tools"]:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring is not None
        assert len(docstring) > 40, folder


def test_no_drawers() -> None:
    assert not {path.stem for path in [*ROOMS, *TOOLS]} & {"utils", "common", "helpers", "misc"}


def test_the_readme_names_every_room_tool_and_program() -> None:
    readme = (PROJECT_DIR / "README.md").read_text()
    missing = [path.name for path in [*ROOMS, *TOOLS, *PROGRAMS] if path.name not in readme]
    assert missing == []


def test_the_offload_configs_are_the_base_plus_the_offload_sections() -> None:
    base, optimizer, both = (
        json.loads((PROJECT_DIR / f"ds_config{ending}.json").read_text())
        for ending in ("", "_offload_optimizer", "_offload")
    )
    for config in (optimizer, both):
        assert config["zero_optimization"].pop("offload_optimizer")["device"] == "cpu"
    assert both["zero_optimization"].pop("offload_param")["device"] == "cpu"
    assert both == optimizer == base
    assert not {"optimizer", "scheduler"} & set(base)
    shared = ("gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    assert {base[key] for key in shared} == {"auto"}


def locked_versions() -> dict[str, str]:
    lines = (PROJECT_DIR / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_the_lock_satisfies_the_requirements() -> None:
    from packaging.requirements import Requirement

    lock = locked_versions()
    lines = (PROJECT_DIR / "requirements.txt").read_text() + (PROJECT_DIR / "requirements-dev.txt").read_text()
    wanted = [Requirement(line.split("#")[0]) for line in lines.splitlines() if line[:1].isalpha()]
    assert len(wanted) > 12
    for requirement in wanted:
        assert requirement.specifier.contains(lock[requirement.name.lower()]), requirement
    assert lock["torch"] == "2.13.0"


def test_the_lock_with_hashes_has_the_versions_of_the_lock() -> None:
    lock, text = locked_versions(), (PROJECT_DIR / "requirements.hashes.lock").read_text()
    found: dict[str, tuple[str, int]] = {}
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        name, version, num_hashes = entry.split("==")[0], entry.split("==")[1].split()[0], entry.count("--hash=sha256:")
        found[name] = (version, num_hashes)
    assert all(num_hashes > 0 for _, num_hashes in found.values())
    known = {name: version for name, (version, _) in found.items() if name in lock}
    assert known == {name: lock[name] for name in known}
    unknown = set(found) - set(known)
    elsewhere = {"colorama", "httpx2-jsfetch", "triton"}  # of other systems, or of torch's CUDA build
    assert {name for name in unknown if not name.startswith(("cuda-", "nvidia-"))} <= elsewhere
    requirements = (PROJECT_DIR / "requirements.txt").read_text().splitlines()
    wanted = {re.split("[>=<]", line)[0].lower() for line in requirements if line[:1].isalpha()}
    assert wanted <= set(known)


def test_every_direct_dependency_has_its_reason() -> None:
    for line in (PROJECT_DIR / "requirements.txt").read_text().splitlines():
        if line[:1].isalpha():
            assert "#" in line, line


def test_the_sample_corpus_is_what_it_says() -> None:
    records = [json.loads(line) for line in (PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()]
    assert len(records) >= 120
    assert {record["source"] for record in records} == {"world", "business", "science", "sport", "local"}
    assert all(set(record) == {"text", "source"} for record in records)
    assert all(150 <= len(record["text"].split()) <= 300 for record in records)
    assert len({record["text"].splitlines()[0] for record in records}) == len(records), "a headline stands twice"
