"""The commands of README.md and docs/: each block is run in a small form, or carries the reason why not."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from docs.generate_reference import parser_of
from tests.conftest import PROJECT_DIR, TINY_MODEL, Done, run
from tests.programs.launching import free_port, run_forked

BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?:bash|sh)\n(?P<code>.*?)```", re.DOTALL)
NAMED = re.compile(r"tests/[\w/]+(?:\.py)?|[\w/-]+\.md")  # tests and pages that a reason names
SAME = re.compile(r"(?P<page>[\w/-]+\.md) has the same commands?, which (?:is|are) run$")
GENERATED = ("docs/reference/cli/", "docs/benchmarks/")
COMMAND = re.compile(r"(?:-m (?P<tool>tools\.\w+)|(?P<program>\w+)\.py)\b(?P<rest>.*)")
PROGRAMS = ("preprocess", "pretrain", "finetune", "generate", "train_tokenizer")
# Not started as new processes: README.md starts pretrain.py for a training, and test_chat.py starts generate.py.
FORKED = re.compile(r"python3 (?:generate\.py|pretrain\.py .*--dry_run)[^|&;<>$*]*$")
# What makes a command of the documents small; later flags override earlier ones and those of a recipe.
SIZES = {"--block_length 2048": "--block_length 128", "--vocab_size 32000": "--vocab_size 500"}
DOES_NOT_FIT = "llama2_7b.yaml --dry_run --num_gpus 1 --gpu_type h100 --host_memory 256GB"  # exit code 2
SMALL_RUN = "--per_device_train_batch_size 4 --max_steps 4 --save_steps 2 --eval_steps 4 --learning_rate 1e-2 "
SMALL_RUN += "--per_device_eval_batch_size 8 --report false"
SHAPE = " ".join([*TINY_MODEL[:-1], "max_position_embeddings=512"])  # generate.py's default is 200 tokens
SMALL_MODEL = f"--model quickstart --model_overrides {SHAPE} --global_batch_tokens 1024 --warmup_steps 1"
SMALL = {
    "pretrain": f"{SMALL_MODEL} {SMALL_RUN}",
    "finetune": f"{SMALL_RUN} --per_device_train_batch_size 1 --block_length 64",
}


@dataclass(frozen=True)
class Block:
    """Commands of one fenced block, and why they are not run; an empty reason: they are."""

    code: str
    reason: str

    @property
    def lines(self) -> list[str]:
        """Commands, without comments."""
        joined = re.sub(r"\s*\\\n\s*", " ", self.code)
        return [line for line in (re.sub(r"(^|\s)# .*", "", text).strip() for text in joined.splitlines()) if line]


def pages() -> list[str]:
    names = [path.relative_to(PROJECT_DIR).as_posix() for path in (PROJECT_DIR / "docs").rglob("*.md")]
    return ["README.md", *sorted(name for name in names if not name.startswith(GENERATED))]


def blocks_of(page: str) -> list[Block]:
    text = (PROJECT_DIR / page).read_text()
    return [Block(match["code"], match["reason"] or "") for match in BLOCK.finditer(text)]


PAGES_TO_RUN = [page for page in pages() if any(not block.reason for block in blocks_of(page))]


def in_small(line: str) -> str:
    """The command with small sizes, and with a port that no other test has."""
    for large, small in SIZES.items():
        line = line.replace(large, small)
    found = COMMAND.search(line)
    if found and found["program"] in SMALL and "--dry_run" not in line:
        line = f"{line} {SMALL[found['program']]}"
    return re.sub(r"^deepspeed ", f"deepspeed --master_port={free_port()} ", line)


def run_blocks(page: str, folder: Path) -> None:
    """Run the blocks of a page in their order."""
    for block in blocks_of(page):
        for is_forked, lines in groupby([] if block.reason else block.lines, lambda line: bool(FORKED.match(line))):
            for script in lines if is_forked else ["\n".join(map(in_small, lines))]:
                done = run_forked(*shlex.split(script), cwd=folder) if is_forked else run_script(script, folder)
                expected = 2 if script.endswith(DOES_NOT_FIT) else 0
                assert done.returncode == expected, f"{page}:\n{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_script(script: str, folder: Path) -> Done:
    """Run commands that end at the first error."""
    return run("bash", "-c", f"set -euo pipefail\n{script}", cwd=folder, env={"PYTHONPATH": str(PROJECT_DIR)})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the checkout is, in which README.md's commands were run: tokenizer/, blocks/, runs/news/."""
    folder = tmp_path_factory.mktemp("workspace")
    for path in PROJECT_DIR.iterdir():
        if not path.name.startswith(".") and path.name not in ("runs", "blocks", "build", "tokenizer"):
            (folder / path.name).symlink_to(path)
    shutil.copyfile(PROJECT_DIR / "data/sample/news.jsonl", folder / "news.jsonl")
    (folder / "notes").mkdir()
    (folder / "notes/note.txt").write_text("The council met on Monday.\n")
    run_blocks("README.md", folder)
    return folder


# Their programs take longest to start. What they do is held by test_evaluate.py, test_evaluate_completions.py,
# test_checkpoints.py, test_finetune.py, test_generate.py, test_report.py and test_planning.py in tests/programs, by
# test_the_exported_model_is_everybodys_and_has_the_trainers_logits, tests/faults/test_stopping.py, test_preprocess.py,
# test_trace.py and tests/test_docs.py; that their flags exist, by test_all_flags_of_commands_exist.
LONG_PAGES = [f"docs/guides/{name}.md" for name in ("evaluate", "finetune", "generate", "monitor", "resume-and-stop")]
LONG_PAGES += [f"docs/guides/{name}.md" for name in ("long-context", "multi-gpu", "preprocess", "provenance", "serve")]
LONG_PAGES += ["docs/explanation/parallelism.md", "docs/getting-started/hardware.md", "docs/contributing/setup.md"]
LONG_PAGES += ["docs/reference/deepspeed-config.md"]


@pytest.mark.launch
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long if page in LONG_PAGES else ()) for page in PAGES_TO_RUN]
)
def test_the_commands_work(page: str, workspace: Path) -> None:
    if page != "README.md":  # the workspace ran these
        run_blocks(page, workspace)


def flags_in(line: str) -> Iterator[tuple[str, str]]:
    """Modules of this suite that a command starts, with the flags it passes to each."""
    found = COMMAND.search(line)
    while found:
        own, _, rest = found["rest"].partition(" -- ")
        module = found["tool"] or found["program"]
        if found["tool"] or found["program"] in PROGRAMS:
            yield from ((module, name) for name in re.findall(r"(?<=\s)--[a-z][\w-]*", own))
        found = COMMAND.search(rest)


def flags_of(module: str) -> set[str]:
    """The flags of a program; none of one that is not there."""
    if not (PROJECT_DIR / f"{module.replace('.', '/')}.py").exists():
        return set()
    return {option for action in parser_of(module)._actions for option in action.option_strings}


def test_all_flags_of_commands_exist() -> None:
    known: dict[str, set[str]] = {}
    unknown = []
    for page in pages():
        for block in blocks_of(page):
            for module, name in (pair for line in block.lines for pair in flags_in(line)):
                if module not in known:
                    known[module] = flags_of(module)
                if name not in known[module] | {"--recipe", "--help"}:
                    unknown.append(f"{page}: {module} {name}")
    assert unknown == []


def test_reasons_are_given_for_blocks_alone() -> None:
    for page in pages():
        marks = (PROJECT_DIR / page).read_text().count("<!-- not run:")
        inline = (PROJECT_DIR / page).read_text().count("`<!-- not run:")
        assert marks - inline == sum(bool(block.reason) for block in blocks_of(page)), page
        for block in blocks_of(page):
            assert [name for name in NAMED.findall(block.reason) if not (PROJECT_DIR / name).exists()] == [], page
            if same := SAME.match(block.reason):
                run = {line for other in blocks_of(same["page"]) if not other.reason for line in other.lines}
                assert [line for line in block.lines if line not in run] == [], f"{page}: not run by {same['page']}"
