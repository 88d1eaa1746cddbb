"""What can be read off Dockerfile, .dockerignore and apptainer.def without building them."""

import re
import subprocess
import sys
from fnmatch import fnmatch

import pytest

from pretraining.system.machines.software import COMMIT_VARIABLE
from tests.conftest import PROJECT_DIR, run
from tests.programs.container.chroot import ignored
from tests.programs.container.dockerfile import DOCKERFILE, filled_in, instructions_of, stages_of

APPTAINER = PROJECT_DIR / "apptainer.def"
SECRETS = re.compile(r"(?i)token(?!izer)|secret|password|passwd|api_?key|credential|\.netrc|\.ssh")
NOT_COPIED = (".git", ".venv", ".venv-bench", "blocks", "runs", "tokenizer", "build", ".env", ".mypy_cache")


def section_of(name: str) -> list[str]:
    """The lines of a section of apptainer.def."""
    _, _, rest = APPTAINER.read_text().partition(f"\n%{name}\n")
    lines = rest.partition("\n%")[0].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def pip_lines(lines: list[str]) -> list[str]:
    """What is installed with pip, in which versions; without where."""
    found = [re.search(r"-m pip install (.*)", line) for line in lines]
    return [re.sub(r"-q |--no-cache-dir |--disable-pip-version-check ", "", match[1]) for match in found if match]


def run_lines() -> list[str]:
    return [one.text for stage in stages_of() for one in stage.instructions if one.name == "RUN"]


def test_versions_come_from_the_lock_as_in_the_makefile() -> None:
    makefile = (PROJECT_DIR / "Makefile").read_text()
    target = makefile.partition("\n$(VENV)/.installed:")[2].partition("\n\n")[0]
    installed = pip_lines(target.splitlines())
    assert len(installed) == 2
    assert all("-c requirements.lock" in line for line in installed)
    assert pip_lines(run_lines()) == installed
    assert pip_lines(section_of("post")) == installed


def test_what_is_copied_exists() -> None:
    names = []
    for stage in stages_of():
        copies = [one.words for one in stage.instructions if one.name == "COPY"]
        names += [name for words in copies if not words[0].startswith("--from=") for name in words[:-1]]
        stages = [words[0].removeprefix("--from=") for words in copies if words[0].startswith("--from=")]
        assert set(stages) <= {other.name for other in stages_of()}
    names += [line.split()[0] for line in section_of("files")]
    assert {"requirements.txt", "requirements.lock", "."} <= set(names)
    assert [name for name in names if name != "." and not list(PROJECT_DIR.glob(name))] == []


def test_the_image_runs_as_a_user_of_its_own_through_tini() -> None:
    stage = stages_of()[-1]
    (user,) = stage.last("USER")
    assert user not in ("root", "0")
    assert any(re.search(rf"useradd .*\b{user}\b", line) for line in run_lines())
    after = stage.instructions[[one.name for one in stage.instructions].index("USER") :]
    assert {one.name for one in after} <= {"USER", "ENTRYPOINT", "CMD"}
    *init, script = stage.last("ENTRYPOINT")
    assert init == ["tini", "-g", "--", "sh"]
    assert (PROJECT_DIR / script.removeprefix("/suite/")).is_file()
    assert stage.last("CMD")[:3] == ["python3", "-m", "tools.doctor"]


def test_the_entrypoint_passes_on_words_and_the_exit_code() -> None:
    program = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(75)"]
    done = run("sh", PROJECT_DIR / "entrypoint.sh", *program, "a b", "")
    assert (done.stdout, done.returncode) == ("['a b', '']\n", 75)


def test_the_base_is_a_slim_image_of_a_supported_python() -> None:
    (first, *others) = {stage.base for stage in stages_of()}
    assert others == []
    assert re.fullmatch(r"python:3\.1[1-9]-slim-\w+", first)
    assert f"BASE={first}" in section_of("arguments")


def test_no_secret_is_in_it() -> None:
    for one in instructions_of(DOCKERFILE.read_text()):
        if one.name in ("ARG", "ENV", "COPY", "RUN"):
            assert not SECRETS.search(one.text), one
    assert not SECRETS.search(APPTAINER.read_text())


def test_the_commit_reaches_the_record_of_a_run() -> None:
    stage = stages_of()[-1]
    assert "COMMIT" in [one.text.partition("=")[0] for one in stage.instructions if one.name == "ARG"]
    settings = [one.text for one in stage.instructions if one.name == "ENV"]
    assert any(
        f"{COMMIT_VARIABLE}=0123abcd" in filled_in(text, {"COMMIT": "0123abcd", "PATH": ""}) for text in settings
    )
    assert f"export {COMMIT_VARIABLE}={{{{ COMMIT }}}}" in section_of("environment")


@pytest.mark.parametrize("name", NOT_COPIED)
def test_dockerignore_keeps_out(name: str) -> None:
    assert ignored(str(PROJECT_DIR), [name]) == {name}


def test_dockerignore_keeps_what_git_has() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a repository")
    paths = [PROJECT_DIR / name for name in done.stdout.splitlines()]
    assert [str(path) for path in paths if ignored(str(path.parent), [path.name])] == []
    at_top = {path.relative_to(PROJECT_DIR).parts[0] for path in paths}
    assert ignored(str(PROJECT_DIR), sorted(at_top)) == set()


def test_the_apptainer_image_has_every_program_and_package() -> None:
    copied = [line.split()[0] for line in section_of("files")]
    needed = ["pretraining", "tools", "small_world", "recipes", "data"]
    needed += [path.name for path in PROJECT_DIR.glob("*.py")] + [path.name for path in PROJECT_DIR.glob("ds_config*")]
    assert [name for name in needed if not any(fnmatch(name, pattern) for pattern in copied)] == []
