import sys

import pytest

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
def test_an_unknown_flag_is_one_line_and_a_traceback_only_with_debug(program: str) -> None:
    done = run(*python(program, "--modle", "x"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --modle: there is no flag of this name")
    assert "Traceback" in run(*python(program, "--modle", "x", "--debug")).stderr


def test_programs_start_from_another_folder(tmp_path) -> None:
    done = run(*python("preprocess.py"), cwd=tmp_path)
    assert done.errors == ["error: --data_files data/sample/news.jsonl: there is no such file; check the path"]
    assert (PROJECT_DIR / "data/sample/news.jsonl").is_file()
