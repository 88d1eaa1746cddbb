import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.cli.program import importing_libraries
from tests.conftest import PROJECT_DIR, python, run, run_fine

PROGRAMS = ["preprocess.py", "pretrain.py", "finetune.py", "generate.py", "train_tokenizer.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_complete_and_needs_no_torch(program: str) -> None:
    without_torch = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = run_fine(sys.executable, "-c", without_torch, program, "--help")
    assert "--recipe FILE" in done.stdout
    assert "--debug" in done.stdout
    assert f" {program} " in done.stdout
    flags = [line for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(flags) == len(set(flags)) > 5


def test_pretrain_offers_every_flag_of_the_trainer() -> None:
    done = run_fine(*python("pretrain.py", "--help"))
    for name in (
        "--learning_rate",
        "--global_batch_tokens",
        "--save_total_limit",
        "--fp16",
        "--resume",
    ):
        assert f"{name} " in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line(program: str) -> None:
    done = run(*python(program, "--modle", "x"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --modle: unknown flag")


def test_an_unknown_flag_is_a_traceback_only_with_debug() -> None:
    assert "Traceback" in run(*python("preprocess.py", "--modle", "x", "--debug")).stderr


def test_programs_start_from_another_folder(tmp_path) -> None:
    done = run(*python("preprocess.py"), cwd=tmp_path)
    assert done.errors == ["error: --data_files data/sample/news.jsonl: file not found; check the path"]
    assert (PROJECT_DIR / "data/sample/news.jsonl").is_file()


PRINTS = "from pretraining.cli.program import run_program; run_program(lambda _: print('x'))"
BREAKS = (
    "import os, pretraining.cli.program as e; r, w = os.pipe(); os.close(r); e.run_program(lambda _: os.write(w, b'x'))"
)


@pytest.mark.parametrize("words", [["preprocess.py", "--help"], ["-m", "tools.trace"], ["-c", PRINTS]])
def test_a_reader_that_is_gone_ends_a_program_without_a_word(words: list[str], sample_store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *words, *([sample_store, "--block", "0"] if "tools.trace" in words else [])]
    done = subprocess.run(command, cwd=PROJECT_DIR, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    if "--help" not in words:  # argparse minds no reader
        assert done.returncode in (141, -signal.SIGPIPE)


def test_another_pipe_that_breaks_is_a_crash() -> None:
    assert "BrokenPipeError" in run(sys.executable, "-c", BREAKS).stderr


@pytest.mark.parametrize("program", ["preprocess.py", "train_tokenizer.py", "tools.trace"])
def test_any_text_is_shown_where_only_ascii_can_be(program: str, tmp_path: Path, sample_store: Path) -> None:
    data = tmp_path / "été.jsonl"
    data.write_bytes((PROJECT_DIR / "data/sample/news.jsonl").read_bytes())
    env = {"PYTHONIOENCODING": "ascii"}
    if program == "tools.trace":
        shown = run_fine(sys.executable, "-m", program, sample_store, "--block", 0, env=env).stdout
        assert shown.isascii()
        assert "\\u20" in shown, "the news have quotation marks that ASCII has not"
    else:
        flags = ["--data_files", data, "--output_dir", tmp_path / "été"]
        done = run_fine(*python(program, *flags, *(["--vocab_size", 300] if "train" in program else [])), env=env)
        assert "\\xe9t\\xe9" in done.stderr


def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "orjson.py").write_text("raise KeyboardInterrupt")
    done = run(*python("train_tokenizer.py"), env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.output) == (-signal.SIGINT, "")
    (tmp_path / "orjson.py").write_text("raise RuntimeError('is shown')")
    assert "RuntimeError: is shown" in run(*python("train_tokenizer.py"), env={"PYTHONPATH": str(tmp_path)}).stderr


ENDED_WHILE_IT_WAITS = """
import os, signal, time, pretraining.cli.program as program
from pretraining.errors import UserError
def fail(_): raise UserError("--x: is wrong", exit_code=3)
time.sleep = lambda _: os.kill(os.getpid(), signal.SIGTERM)
program.run_program(fail)
"""


def test_a_rank_that_its_launcher_ends_before_it_reports_has_the_exit_code_of_the_error() -> None:
    """srun returns the highest code of all tasks: with that of a signal, a mistake would count as a crash."""
    env = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    done = run(sys.executable, "-c", ENDED_WHILE_IT_WAITS, env=env)
    assert (done.returncode, done.output) == (3, "")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_run_folder_that_may_not_be_read_is_not_called_empty(tmp_path: Path) -> None:
    """Whoever reads is nobody; the folder is root's."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    # Imported before, since Python itself may be root's.
    code = "import os, locale, tools.checkpoints, pretraining.runs.run_folder, pretraining.cli.program as errors; "
    code += "os.setgid(65534); os.setuid(65534); errors.run_program(tools.checkpoints.main)"
    done = run(sys.executable, "-c", code, "verify", closed)
    assert done.errors == [f"error: {closed}: cannot be used (Permission denied); fix it, or choose another path"]


def test_imports_are_not_collected_again() -> None:
    num_before = gc.get_freeze_count()
    with importing_libraries():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() - num_before > len(made)
    with pytest.raises(ImportError), importing_libraries():
        raise ImportError
    assert gc.isenabled(), "after an import that failed, too"
