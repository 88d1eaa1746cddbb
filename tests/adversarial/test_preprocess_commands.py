"""Odd command lines, recipes and environments of preprocess.py and train_tokenizer.py: one line each, or they work.

Each runs in a separate process, a fork of one that has imported the program (command_server.py), in a folder that
must be as it was afterwards, except for what the program was asked to make.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from pretraining.cli.arguments.preprocess import PreprocessArguments, TokenizerArguments
from pretraining.cli.flags import Flag, flags_of
from tests.adversarial.drivers.mutations import tried_now
from tests.conftest import PROJECT_DIR

SERVER = PROJECT_DIR / "tests/adversarial/drivers/command_server.py"
SECONDS = 60  # a command takes 1 s at most; a machine that is busy, ten times that
NOBODY = 65534
LONG = "n" * 300
NUMBERS = ["", " ", "nan", "inf", "-1", "0", "1.5", "1e400", "0x10", "x", "9" * 30, "9" * 5000, "\u0663", "-", "none"]
WORDS = ["", "\t", LONG, "\udcff", "\u202egnp.x", "\x1b[31mred", "a\nerror: b", "$(touch PWNED)", "; touch PWNED #"]
WORDS += ["-", "\0", "none"]
PATHS = [*WORDS, "/", ".", "..", "loop", "loop/x", "file.txt/x", "/dev/null/x", "fifo"]
# Folders that are read as a whole, which "/" and ".." would be, are a matter of what the user has there.
VALUES: dict[str, list[str]] = {
    "data_files": [word for word in PATHS if word not in ("/", "..", "none")] + ["hf://../..", "hf://a", "x=", "=x"],
    "tokenizer": [*PATHS, "a/b/c", "../..", "nobody/no-such-tokenizer"],
    "output_dir": PATHS,
    "push_to_hub": [*WORDS, "../..", "a", "a/b/c", "-a/b"],
    "language_hook": [*WORDS, "no.such:thing", "os:no_such", "os", ":"],
    "split": [*WORDS, "1,1", "0,0,0", "-1,1,1", "9" * 25 + ",1,1", "nan,1,1", "1,,1", "9" * 5000 + ",1,1"],
}
LEFT_OUT = {"max_characters", "seed", "hub_private", "license"}  # of the types that others have, to save time


@dataclass
class Command:
    """A command line, and what must be in its one line of error; `None` where it may work as well, "" where it must."""

    program: str
    argv: list[str]
    error: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    uid: int = 0

    def __str__(self) -> str:
        return " ".join([*(f"{k}={v}" for k, v in self.env.items()), self.program, *map(ascii, self.argv)])[:200]


def generated() -> Iterator[Command]:
    """Each flag with the odd values of its type."""
    for program, arguments in (("preprocess", PreprocessArguments), ("train_tokenizer", TokenizerArguments)):
        for flag in flags_of(arguments):
            if flag.name not in LEFT_OUT:
                yield from (Command(program, [f"--{flag.name}", value]) for value in values_of(flag))


def values_of(flag: Flag) -> list[str]:
    if flag.name in VALUES:
        return VALUES[flag.name]
    if flag.choices or flag.value_type is bool:
        return ["", "maybe", "TRUE!", "9" * 30]
    return NUMBERS if flag.value_type in (int, float) else WORDS


EMPTY = "expects a path or name, not "
RECIPES = {
    "badint.yaml": (b'data_files: {a: !!int "abc"}\n', "badint.yaml:1: data_files: expects a plain value"),
    "date.yaml": (b"seed: 1\nlanguages: {a: 2001-99-99}\n", "date.yaml:2: languages: expects a plain value"),
    "itself.yaml": (b"languages: &a {b: *a}\n", "itself.yaml:1: languages: expects"),
    "itself_too.yaml": (b"languages: &a [*a]\n", "itself_too.yaml:1: languages: expects"),
    "deep.yaml": (b"languages: " + b"[" * 3000 + b"]" * 3000 + b"\n", "deep.yaml: is nested too deeply"),
    "nul.yaml": (b'text_field: "a\\0b"\n', "nul.yaml:1: text_field: expects UTF-8 without NUL"),
    "empty_word.yaml": (b"seed: 1\noutput_dir: ''\n", f"empty_word.yaml:2: output_dir: {EMPTY}"),
    "laughs.yaml": (
        b"seed: 1\nlanguages:\n- &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"- &%c [%s]\n" % (97 + n, b", ".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)),
        "laughs.yaml:2: languages: expects a plain value",
    ),
    "latin.yaml": (b"text_field: caf\xe9\n", "latin.yaml: cannot be read"),
    "raw_nul.yaml": (b"seed: 1\0\n", "raw_nul.yaml: is not YAML"),
    "list.yaml": (b"- a\n", "list.yaml: expects lines of the form"),
    "nothing.yaml": (b"", "nothing.yaml: expects lines of the form"),
    "python.yaml": (b'seed: !!python/object/apply:os.system ["touch PWNED"]\n', "python.yaml:1: seed: expects"),
    "twice.yaml": (b"seed: 1\nseed: 2\n", "twice.yaml:2: seed: duplicate key"),
}


def recipes() -> Iterator[Command]:
    """Recipes with the words that the error must have."""
    for name, (_, error) in RECIPES.items():
        yield Command("preprocess", ["--recipe", name], error)
    yield from (
        Command("preprocess", ["--recipe", word], f"--recipe {word or '.'}: {error}")
        for word, error in {
            "": "is not a file", "closed": "is not a file", "fifo": "is not a file", "none.yaml": "cannot be read",
            "huge.yaml": "is larger than", "loop": "cannot be read", LONG: "cannot be read (File name too long)",
        }.items()
    )  # fmt: skip


def environments() -> Iterator[Command]:
    """What launchers, or users in their place, set."""
    for names, values in {
        ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "LOCAL_RANK"): ["abc", "-1", "1.5", "9" * 30, "\u0663"],
        ("WORLD_SIZE", "PMI_SIZE", "LOCAL_WORLD_SIZE"): ["x", "0", "-1"],
    }.items():
        for name, value, program in product(names, values, ("preprocess", "train_tokenizer")):
            yield Command(program, [], f"error: {name}={value}: is not a whole number", {name: value})


def other_environments() -> Iterator[Command]:
    """What each program finds odd, and what it does not."""
    no_ranks = [("rank 2 of 2 processes", {"RANK": "2", "WORLD_SIZE": "2"}), ("rank 1 of 1 processes", {"RANK": "1"})]
    for error, env in no_ranks:
        yield Command("preprocess", [], error, env)
    for env in ({"OMP_NUM_THREADS": "abc"}, {"HOME": ""}, {"TMPDIR": "/nonexist"}, {"COLUMNS": "abc"}, {"RANK": ""}):
        yield Command("preprocess", [], "", env)


def mistakes() -> Iterator[Command]:
    """Flags with the words that the error must have."""
    for flag, value, error in [
        ("data_files", "", f"--data_files: {EMPTY}''"),
        ("output_dir", " ", f"--output_dir: {EMPTY}' '"),
        ("output_dir", ".", "is the working directory"),
        ("output_dir", "loop", "cannot be read (Symlink loop"),
        ("output_dir", LONG, "cannot be read (File name too long)"),
        ("output_dir", "n" * 250, "cannot be used (File name too long)"),
        ("output_dir", "file.txt", "has other files"),
        ("output_dir", "closed", "has other files"),
        ("data_files", LONG, "cannot be read (File name too long)"),
        ("data_files", "loop", "file not found"),
        ("data_files", "empty.jsonl", "is empty"),
        ("data_files", "hf://../..", "not of the form hf://"),
        ("data_files", "hf://a/..", "not of the form hf://"),
        ("data_files", "hf://a/b--c", "cannot be read from the Hub"),
        ("near_duplicates", "0.9999999", "must be in [0.01, 0.98]"),
        ("near_duplicates", "nan", "must be in [0.01, 0.98]"),
        ("max_document_bytes", "-5", "must be in [1, 2147483647]"),
        ("max_document_bytes", "9" * 15, "must be in [1, 2147483647]"),
        ("source_field", "\udcff", "expects UTF-8 without NUL characters"),
        ("num_workers", "1000000", "must be in [1, 1024]"),
        ("split", "9" * 25 + ",1,1", "is not three weights"),
        ("seed", "9" * 20, "must be in [0, 4294967295]"),
    ]:
        yield Command("preprocess", [f"--{flag}", value], error)
    for hook, error in {"sys:exit": "the function exits; use another one", "ends": "cannot be loaded (3)"}.items():
        yield Command("preprocess", ["--language_hook", hook, "--languages", "en"], error)
    for flag, value, error in [
        ("vocab_size", "9" * 20, "must be in [260, 1e6]"),
        ("vocab_size", "9" * 12, "must be in [260, 1e6]"),
        ("max_document_bytes", "-5", "must be in [1, 2147483647]"),
        ("output_dir", "loop/x", "cannot be written (Too many levels of symbolic links)"),
        ("output_dir", LONG, "File name too long"),
        ("output_dir", "file.txt", "exists already"),
    ]:
        yield Command("train_tokenizer", [f"--{flag}", value], error)


def as_nobody() -> Iterator[Command]:
    """What cannot be read is never called something that cannot be written, and the other way round."""
    for argv, error in [
        (["--data_files", "secret.jsonl"], "secret.jsonl: cannot be read (Permission denied)"),
        (["--data_files", "closed/a.jsonl"], "closed/a.jsonl: cannot be read (Permission denied)"),
        (["--data_files", "closed"], "closed: cannot be read (Permission denied)"),
        (["--tokenizer", "closed"], "closed: cannot be read (Permission denied)"),
        (["--tokenizer", "closed_tokenizer"], "tokenizer_config.json cannot be read ("),
        (["--recipe", "closed/a.yaml"], "closed/a.yaml: cannot be read (Permission denied)"),
        (["--output_dir", "closed/x"], "cannot be read (Permission denied)"),
        (["--output_dir", "/root_only"], "cannot be written (Permission denied)"),
        (["--output_dir", "readable/x"], "cannot be written (Permission denied)"),
    ]:
        yield Command("preprocess", argv, error, uid=NOBODY)
    yield Command("train_tokenizer", ["--data_files", "secret.jsonl"], "cannot be read (Permission", uid=NOBODY)
    yield Command("train_tokenizer", ["--output_dir", "readable/x"], "cannot be written (Permission", uid=NOBODY)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the commands run: everybody may enter it, other than pytest's own folders."""
    place = Path(tempfile.mkdtemp(prefix="commands-"))
    place.chmod(0o777)
    shutil.copytree(PROJECT_DIR / "data/sample/tokenizer", place / "data/sample/tokenizer")
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_bytes().splitlines(keepends=True)[:30]
    (place / "data/sample/news.jsonl").write_bytes(b"".join(lines))
    for name, (content, _) in RECIPES.items():
        (place / name).write_bytes(content)
    with (place / "huge.yaml").open("wb") as huge:
        huge.truncate(1 << 30)
    (place / "ends.py").write_text("raise SystemExit(3)")
    (place / "loop").symlink_to("loop")
    (place / "file.txt").write_text("a text\n")
    (place / "empty.jsonl").touch()
    os.mkfifo(place / "fifo")
    for name, mode in (("closed", 0o700), ("readable", 0o755), ("closed_tokenizer", 0o755)):
        (place / name).mkdir()
        (place / name / "tokenizer.json").write_text("{}")
        (place / name / "tokenizer.json").chmod(0o600)
        (place / name).chmod(mode)
    (place / "secret.jsonl").write_bytes(lines[0])
    (place / "secret.jsonl").chmod(0o600)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": "/nonexist/hub"}
    env = {name: value for name, value in env.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(SERVER), "preprocess", "train_tokenizer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def snapshot(folder: Path) -> dict[str, str]:
    """What is in the folder, except for the logs: links, pipes, and the digests of files."""
    found = {}
    for path in folder.rglob("*"):
        kind = "link" if path.is_symlink() else "file" if path.is_file() else "folder" if path.is_dir() else "pipe"
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if kind == "file" and path.name != "huge.yaml" else ""
        found[str(path.relative_to(folder))] = kind + digest
    return {name: what for name, what in found.items() if name not in ("stdout", "stderr")}


@dataclass(frozen=True)
class Outcome:
    """How a command ended: the exit code, None where it was killed; its log; what it has changed and made."""

    code: int | None
    log: str
    lost: list[str]
    made: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.log.splitlines() if line.startswith("error: ")]


def outcome_of(server: subprocess.Popen, folder: Path, command: Command) -> Outcome:
    before = snapshot(folder)
    assert server.stdin is not None
    assert server.stdout is not None
    defaults = {
        "preprocess": {"--block_length": "16", "--num_workers": "2"},
        "train_tokenizer": {"--vocab_size": "300"},
    }
    argv = [word for name, value in defaults[command.program].items() for word in (name, value)] + command.argv
    job = {"program": command.program, "argv": argv, "env": command.env, "uid": command.uid}
    server.stdin.write(json.dumps({**job, "folder": str(folder), "seconds": SECONDS}) + "\n")
    server.stdin.flush()
    done = json.loads(server.stdout.readline())
    after = snapshot(folder)
    made = sorted({name.split("/")[0] for name in after.keys() - before.keys()})
    for path in (folder / name for name in made):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lost = sorted(name for name, what in before.items() if after.get(name) != what)
    return Outcome(done["code"], done["stderr"], lost, made)


def problem_of(outcome: Outcome, command: Command) -> str | None:
    """What is wrong with how a command ended; None when it is as it must be."""
    may_be_refused, may_work = command.error != "", not command.error
    faults = {
        "hangs": outcome.code is None,
        f"changed or deleted {outcome.lost}": bool(outcome.lost),
        "was executed": "PWNED" in outcome.made,
        "crashed": "Traceback" in outcome.log or outcome.code not in (0, 2),
        "was refused": outcome.code == 2 and not may_be_refused,
        "was taken": outcome.code == 0 and not may_work,
        # A word that begins with a dash is taken for a flag, and its flag has no value then.
        "is more than a line": outcome.code == 2 and not 1 <= len(outcome.errors) <= (2 if may_work else 1),
        f"has not {command.error!r}": bool(command.error) and command.error not in outcome.log,
    }
    found = [fault for fault, is_so in faults.items() if is_so]
    return f"{', '.join(found)}: {outcome.code} {outcome.log[-300:]}" if found else None


def check(server: subprocess.Popen, folder: Path, commands: list[Command]) -> None:
    problems = {str(command): problem_of(outcome_of(server, folder, command), command) for command in commands}
    assert not {command: problem for command, problem in problems.items() if problem}


def test_odd_values_of_every_flag_are_one_line_or_work(server: subprocess.Popen, folder: Path) -> None:
    commands = list(generated())
    assert len(commands) > 200
    check(server, folder, tried_now(commands))


def test_mistakes_are_told_by_what_they_are(server: subprocess.Popen, folder: Path) -> None:
    commands = [*recipes(), *tried_now(environments()), *other_environments(), *mistakes()]
    assert len(commands) > 50
    check(server, folder, commands)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_what_another_user_may_not_read_or_write_is_told_as_that(server: subprocess.Popen, folder: Path) -> None:
    check(server, folder, list(as_nobody()))
