"""Compiled functions give the results of the Python they are made of, or a reason in one line why they cannot."""

import signal
from pathlib import Path

import pytest

from pretraining.system.compiled.cache import BackgroundLibrary, StoppedError, is_cached, load_compiled
from pretraining.system.compiled.unit import CompiledError
from tests.conftest import run_fine
from tests.unit.system.compiled.conftest import UNIT, assert_works, cached_files

SECOND_START = """
import subprocess, sys
from tests.unit.system.compiled.conftest import assert_works
subprocess.Popen = None
assert_works()
assert "numba" not in sys.modules"""


def test_a_second_start_compiles_nothing_and_imports_no_numba(made: Path) -> None:
    assert made.is_file()
    run_fine("python", "-c", SECOND_START)


@pytest.mark.parametrize("damage", ["a byte of the machine code", "its end is missing", "it is empty"])
def test_a_damaged_file_is_made_again_with_a_warning(
    damage: str, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = made.read_bytes()
    middle = len(content) // 2
    changed = bytes([content[middle] ^ 1])
    damaged = {"a": content[:middle] + changed + content[middle + 1 :], "its": content[:-1], "it": b""}
    made.write_bytes(damaged[damage.split()[0]])
    assert not is_cached(UNIT)
    caplog.clear()
    monkeypatch.setattr(BackgroundLibrary, "_compile", lambda _: content)
    assert_works()
    assert set(caplog.messages) == {f"{made}: compiling again (the file is damaged)"}
    assert made.read_bytes() == content


def test_another_cpu_has_not_this_file(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_cached(UNIT)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    assert not is_cached(UNIT)


# Long: test_another_cpu_has_not_this_file holds it without another compilation.
@pytest.mark.long
def test_another_cpu_has_a_file_of_its_own(made: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    assert_works()
    assert len(cached_files(cache)) == 2


def test_a_cpu_that_the_compiler_does_not_know_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "no-such-cpu")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    with pytest.raises(CompiledError, match=r"the compiler ended with status .*LLVM ERROR"):
        load_compiled(UNIT)


def test_a_cache_that_cannot_be_written_costs_a_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")  # nobody can create a folder there, not even root
    assert_works()
    (line,) = set(caplog.messages)
    assert "compiled functions cannot be kept there" in line
    assert "set XDG_CACHE_HOME" in line


def test_a_folder_of_others_is_not_trusted(made: Path) -> None:
    made.parent.chmod(0o770)
    assert not is_cached(UNIT)
    with pytest.raises(CompiledError, match="other users can write to it"):
        load_compiled(UNIT)
    made.parent.chmod(0o755)
    assert is_cached(UNIT)


def test_the_compiler_takes_nothing_from_the_working_directory_or_the_variables_of_numba(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit('not the library')")
    (folder / "pretraining").mkdir()
    monkeypatch.chdir(folder)
    for name in ("NUMBA_DISABLE_JIT", "NUMBA_DUMP_IR", "NUMBA_BOUNDSCHECK"):
        monkeypatch.setenv(name, "1")
    assert_works()


def test_whatever_a_broken_library_raises_is_a_reason(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken\non two lines")

    monkeypatch.setattr("pretraining.system.compiled.cache.CompiledLibrary", broken)
    assert made.is_file()
    with pytest.raises(CompiledError, match="broken on two lines"):
        load_compiled(UNIT)


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pretraining.system.compiled.unit.version", missing)
    assert not is_cached(UNIT)
    with pytest.raises(CompiledError, match=r"numba is not installed; pip install"):
        load_compiled(UNIT)


def test_a_compiler_at_work_ends_with_the_program(cache: Path) -> None:
    library = BackgroundLibrary(UNIT)
    library.close()
    with pytest.raises(StoppedError):
        library.wait()
    assert library.library is None
    assert cached_files(cache) == []
    assert library._compiler is None or library._compiler.returncode == -signal.SIGKILL
