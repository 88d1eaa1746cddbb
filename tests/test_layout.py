"""The layout: small modules and folders, imports that run downward, no torch below training, tests that mirror it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR

PACKAGE = PROJECT_DIR / "pretraining"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
TOOLS = sorted(path for path in (PROJECT_DIR / "tools").glob("*.py") if path.name != "__init__.py")
SCRIPTS = ("preprocess.py", "pretrain.py", "finetune.py", "generate.py", "train_tokenizer.py")
PROGRAMS = [PROJECT_DIR / name for name in SCRIPTS]
COMMANDS = [*PROGRAMS, *(path for path in TOOLS if path.name != "killable_run.py")]
MAX_LINES = 250
MIN_LINES = 40
MAX_FILES = 15
MAX_MAIN_LINES = 30
SMALL_BECAUSE = "Separate because"  # how the docstring of a module below MIN_LINES gives its reason
# A package imports from the lines above its own only.
LAYERS = (
    ("errors",),
    ("system",),
    ("cli", "hub", "doctor"),
    ("data", "planning", "runs"),
    ("training", "generation"),
    ("evaluation", "finetuning"),
)
TRAINING_LAYERS = (
    ("distributed", "optim", "data"),
    ("model",),
    ("metrics", "tasks"),
    ("checkpoint",),
    ("config",),
    ("trainer",),
    ("callbacks", "stopping", "dry_run"),
    ("build", "finish"),
    ("run",),
)
WITHOUT_TORCH = {"errors", "system", "cli", "hub", "data", "planning"}


def imported_modules(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in the file it does; of a package the modules it asks for."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def parts_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def layer_of(layers: tuple[tuple[str, ...], ...], name: str) -> int:
    (layer,) = [number for number, names in enumerate(layers) if name in names]
    return layer


def imports_upward(path: Path) -> list[str]:
    """What a module imports from its own layer or a higher one, in another package."""
    own, found = parts_of(path), []
    for name in imported_modules(path):
        if not name.startswith("pretraining.") or not (PACKAGE / name.split(".")[1]).exists():
            continue
        other = name.split(".")[1:]
        pairs = [(LAYERS, own[0], other[0])]
        if own[0] == other[0] == "training" and len(own) > 1 and len(other) > 1:
            pairs.append((TRAINING_LAYERS, own[1], other[1]))
        found += [name for layers, a, b in pairs if a != b and layer_of(layers, b) >= layer_of(layers, a)]
    return found


def test_modules_are_small_and_worth_a_file() -> None:
    assert len(MODULES) > 30
    sizes = {path: len(path.read_text().splitlines()) for path in [*MODULES, *TOOLS, *PROGRAMS]}
    assert {str(path): size for path, size in sizes.items() if size > MAX_LINES} == {}
    small = [path for path in [*MODULES, *TOOLS] if sizes[path] < MIN_LINES]
    assert [str(path) for path in small if SMALL_BECAUSE not in path.read_text()] == []


def test_folders_are_small() -> None:
    folders = {path.parent for path in [*MODULES, *(PROJECT_DIR / "tests").rglob("*.py"), *TOOLS]}
    sizes = {str(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: size for folder, size in sizes.items() if size > MAX_FILES} == {}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_programs_read_as_a_story(path: Path) -> None:
    (main,) = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "main"]
    assert main.end_lineno - main.lineno < MAX_MAIN_LINES


def test_imports_run_downward() -> None:
    assert {parts_of(path)[0] for path in MODULES} == {name for layer in LAYERS for name in layer}
    upward = {str(path): names for path in MODULES if parts_of(path) != ("errors",) and (names := imports_upward(path))}
    assert upward == {}
    for path in MODULES:
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert not tops & {"preprocess", "pretrain", "finetune", "generate", "train_tokenizer", "tools"}, path


def test_packages_below_training_import_no_torch() -> None:
    names = [".".join(("pretraining", *parts_of(path))) for path in MODULES if parts_of(path)[0] in WITHOUT_TORCH]
    names.append("tools.supervise")
    script = f"import sys\nfor name in {names}: __import__(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_program_looks_for_the_launcher_by_its_name() -> None:
    """`DEEPSPEED` starts it; the doctor alone looks whether a user's shell finds it."""
    by_name = re.compile(r"""(which|with_name)\(["']deepspeed["']\)|\[["']deepspeed["'], f?["']-""")
    sources = {path.relative_to(PROJECT_DIR): path for path in PROJECT_DIR.rglob("*.py")}
    own = {str(name): path for name, path in sources.items() if not name.parts[0].startswith((".", "build"))}
    found = {name for name, path in own.items() if by_name.search(path.read_text())}
    assert found == {"pretraining/doctor/software.py"}


def test_every_package_says_what_it_owns() -> None:
    for folder in {path.parent for path in [*MODULES, *TOOLS]}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring is not None, folder
        assert len(docstring) > 40, folder


def test_no_drawers() -> None:
    assert not {path.stem for path in [*MODULES, *TOOLS]} & {"utils", "common", "helpers", "misc"}


def test_unit_tests_mirror_the_modules() -> None:
    unit = PROJECT_DIR / "tests/unit"
    names = {path.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")}
    expected = {"/".join((*parts_of(path)[:-1], f"test_{path.stem}.py")) for path in MODULES}
    assert names - expected == set(), "a test of a module that is not there"
    listed = set((PROJECT_DIR / "tests/without_unit_test.txt").read_text().split())
    untested = {
        "/".join(parts_of(path))
        for path in MODULES
        if "/".join((*parts_of(path)[:-1], f"test_{path.stem}.py")) not in names
    }
    assert untested - listed == set(), "a new module needs a unit test"
    assert listed - untested == set(), "take these off tests/without_unit_test.txt: it may only shrink"


def test_make_faults_runs_every_long_test() -> None:
    """Of all folders but those that benchmarks.faults runs as a whole, whatever their marks."""
    from benchmarks.faults import PLACES, pytest_command

    recipe = (PROJECT_DIR / "Makefile").read_text().partition("\nfaults:")[2].partition("\n\n")[0]
    assert "-m benchmarks.faults\n" in recipe
    (words,) = [line.split() for line in recipe.splitlines() if "-m long" in line]
    left_out = {word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")}
    assert words[words.index("long") + 1] == "tests"
    assert left_out <= set(PLACES)
    others = {word for word in words if word.startswith("-") and "ignore" not in word}
    assert others == {"-m", "-n", "--dist"}, "neither -k nor --deselect"
    command = pytest_command(Path("tests.xml"))
    assert set(PLACES) <= set(command)
    assert {word.split("=")[0] for word in command if word.startswith("-")} == {"-m", "-q", "--timeout", "--junitxml"}
    assert command.count("-m") == 1, "python -m pytest, and no choice of marks"


def test_the_readme_names_every_package_and_program() -> None:
    readme = (PROJECT_DIR / "README.md").read_text()
    packages = {f"{name}/" for layer in LAYERS for name in layer if (PACKAGE / name).is_dir()}
    assert [name for name in sorted(packages | set(SCRIPTS)) if name not in readme] == []


def test_the_offload_configs_are_the_base_plus_the_offload_sections() -> None:
    base, optimizer, both = (
        json.loads((PROJECT_DIR / f"ds_config{ending}.json").read_text())
        for ending in ("", "_offload_optimizer", "_offload")
    )
    assert len(list(PROJECT_DIR.glob("ds_config*.json"))) == 8, "four of stage 3, two of each lower stage"
    for config in (optimizer, both):
        assert config["zero_optimization"].pop("offload_optimizer")["device"] == "cpu"
    assert both["zero_optimization"].pop("offload_param")["device"] == "cpu"
    assert both == optimizer == base
    hpz = json.loads((PROJECT_DIR / "ds_config_hpz.json").read_text())
    assert hpz["zero_optimization"].pop("zero_hpz_partition_size") == "auto"
    assert hpz == base
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
