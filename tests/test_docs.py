"""README.md and docs/: links and named files exist, generated pages are up to date, flags are today's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate_reference import PROGRAMS, parser_of
from tests.conftest import PROJECT_DIR

PAGES = sorted([*PROJECT_DIR.glob("*.md"), *(PROJECT_DIR / "docs").rglob("*.md")])
GENERATED = ("cli", "benchmarks", "packages", "programs", "guarantees", "recipes")  # folders and pages
WRITTEN = [path for path in PAGES if path.parent.name not in GENERATED and path.stem not in GENERATED]
MAX_README_LINES = 200
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
FILE_NAME = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|json|txt|html|css)|\w+\.py)(?:::\w+)?`")
FOLDER_NAME = re.compile(r"`((?:pretraining|tests|docs|tools|benchmarks|recipes)/(?:[\w-]+/)*)`")
# What runs write, and a file of another project.
NOT_HERE = re.compile(r"(runs|blocks|model|build|data|documents|logs)/.*(?<!\.py)$|convert_hf_to_gguf\.py")
# Flags of launchers, other programs and other projects that documents name.
FOREIGN_FLAGS = {
    "--allow-run-as-root", "--include", "--log_level", "--master_port", "--nproc_per_node", "--nnodes", "--num_gpus",
    "--hostfile", "--require-hashes", "--shm-size", "--signal", "--help", "--recipe", "--debug", "--block-length",
    "--trainer_arguments", "--check",
    "--append-eod", "--use_deepspeed", "--zero_stage", "--num_processes", "--cpu", "--use_fsdp", "--use_megatron_lm",
    "--ipc", "--build-arg", "--privileged", "--device", "--pid", "--network",
     "--nodes", "--no_ssh", "--max-restarts", "--gpus-per-node", "--gpus-per-task", "--ntasks-per-node",
    "--requeue", "--label",
}  # fmt: skip


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as repository browsers and MyST make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(PROJECT_DIR).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for name, anchor in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)):
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(f"{name}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(PROJECT_DIR).as_posix())
def test_named_files_exist(path: Path) -> None:
    text = path.read_text()
    names = [*FILE_NAME.findall(text), *FOLDER_NAME.findall(text)]
    roots = (PROJECT_DIR, PROJECT_DIR / "pretraining")
    missing = [name for name in names if not any((root / name).exists() for root in roots)]
    assert [name for name in missing if not NOT_HERE.match(name)] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(PROJECT_DIR).as_posix())
def test_named_tests_exist(path: Path) -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", path.read_text())
    missing = [(name, test) for name, test in named if f"def {test}(" not in (PROJECT_DIR / name).read_text()]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((PROJECT_DIR / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = {(PROJECT_DIR / "docs" / name).resolve() for name in re.findall(r"\]\(([^)#]+)", pages_list())}
    folders = ("getting-started", "guides", "reference", "contributing")
    pages = {path for folder in folders for path in (PROJECT_DIR / "docs" / folder).glob("*.md")}
    assert pages - listed == set()


def pages_list() -> str:
    return (PROJECT_DIR / "docs/README.md").read_text()


@pytest.fixture(scope="module")
def generated() -> tuple[dict[str, str], bool]:
    """The pages by name as a process of their own makes them, and whether that has imported torch."""
    script = "import json, sys, docs.generate_reference as g; pages = dict(g.reference_pages());"
    script += "print(json.dumps([pages, 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    pages, has_torch = json.loads(done.stdout)
    return pages, has_torch


def test_generated_pages_are_up_to_date(generated: tuple[dict[str, str], bool]) -> None:
    pages, _ = generated
    assert len(pages) > 20
    folder = PROJECT_DIR / "docs/reference"
    stale = [name for name, text in pages.items() if (folder / name).read_text() != text]
    assert stale == [], "run python3 -m docs.generate_reference"


def test_no_generated_page_is_left_over(generated: tuple[dict[str, str], bool]) -> None:
    pages, _ = generated
    written = {Path(name).name for name in pages if name.startswith("cli/")}
    assert {path.name for path in (PROJECT_DIR / "docs/reference/cli").glob("*.md")} == written


def test_the_generator_imports_no_torch(generated: tuple[dict[str, str], bool]) -> None:
    _, has_torch = generated
    assert not has_torch


def test_flags_in_the_text_exist() -> None:
    tools = [path.stem for path in (PROJECT_DIR / "docs/reference/cli").glob("*.md")]
    modules = [name if name in PROGRAMS else f"tools.{name}" for name in tools]
    known = FOREIGN_FLAGS | {
        option for name in modules for a in parser_of(name)._actions for option in a.option_strings
    }
    unknown = []
    for path in WRITTEN:
        text = path.read_text()
        if path.name == "CHANGELOG.md":
            text = text.split("## Removed")[0]
        if path.name in (
            "coming-from.md",
            "acceptance.md",
            "parallelism.md",
        ):  # of a row all but the first cell is ours
            text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
        for code in re.findall(r"`(--[^`]*)`", text):
            unknown += [f"{path.name}: {name}" for name in re.findall(r"--[a-z][\w-]*", code) if name not in known]
    assert unknown == []


def test_walks_are_counted() -> None:
    folder = PROJECT_DIR / "docs/explanation"
    counts = [int(row) for row in re.findall(r"^\| \[.*\| (\d+) \|$", (folder / "architecture.md").read_text(), re.M)]
    names = ("life-of-a-token.md", "life-of-a-step.md", "life-of-a-checkpoint.md")
    parts = [(folder / name).read_text() for name in names]
    save, resume = parts.pop().split("## A resume")
    walks = [set(re.findall(r"^\| \d+ \| `(.+?)`", text, re.MULTILINE)) for text in (*parts, save, resume)]
    assert counts == [len(walk) for walk in walks]


def test_the_navigation_of_the_site_has_every_guide_and_explanation() -> None:
    listed = (PROJECT_DIR / "docs/conf.py").read_text()
    pages = [page for part in ("guides", "explanation") for page in (PROJECT_DIR / "docs" / part).glob("*.md")]
    assert [page.name for page in pages if f'"{page.stem}"' not in listed] == []
