"""Write docs/reference/ from flags, docstrings, recipes and the markers of tests.

    python3 -m docs.generate_reference             # write the pages that differ
    python3 -m docs.generate_reference --check     # exit code 1 and their names if there are any

No page needs torch: the flags are those of the parser that prints `--help`.
"""

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from unittest import mock

PROJECT_DIR = Path(__file__).parents[1]
REFERENCE_DIR = PROJECT_DIR / "docs/reference"
PROGRAMS = ("preprocess", "pretrain", "generate", "finetune", "train_tokenizer")
NOT_COMMANDS = ("__init__", "killable_run")  # modules of tools/ that are not started
NOTE = "<!-- Written by `python3 -m docs.generate_reference`; edit the sources, then run it again. -->"
BY_MACHINE = {"num_workers": "by the number of cores"}  # defaults that differ from machine to machine


class ParserReadyError(Exception):
    """Carries the parser of a program out of the program, before it reads a command line."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def main() -> int:
    """Write or check all pages; the exit code."""
    pages = {REFERENCE_DIR / name: text for name, text in reference_pages()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    stale += sorted(set((REFERENCE_DIR / "cli").glob("*.md")) - set(pages))
    for path in stale:
        if "--check" in sys.argv:
            sys.stderr.write(f"{path.relative_to(PROJECT_DIR)}: out of date; run python3 -m docs.generate_reference\n")
        elif path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path])
        else:
            path.unlink()
    return 1 if stale and "--check" in sys.argv else 0


def reference_pages() -> Iterator[tuple[str, str]]:
    """Names below docs/reference/ and texts of all generated pages."""
    tools = sorted(path.stem for path in (PROJECT_DIR / "tools").glob("*.py") if path.stem not in NOT_COMMANDS)
    modules = [*PROGRAMS, *(f"tools.{name}" for name in tools)]
    yield "programs.md", programs_page(modules)
    for module in modules:
        yield f"cli/{module.removeprefix('tools.')}.md", command_page(module)
    yield "packages.md", packages_page()
    yield "recipes.md", recipes_page()
    yield "guarantees.md", guarantees_page()


def page(title: str, *sections: str) -> str:
    """A page of Markdown."""
    return "\n\n".join([f"# {title}", NOTE, *sections]) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def programs_page(modules: Sequence[str]) -> str:
    """Every program and tool with its first line, and what all of them share."""
    rows = [
        (
            f"[{command_name(module)}](cli/{module.removeprefix('tools.')}.md)",
            prose(first_line(Path(f"{module.replace('.', '/')}.py"))),
        )
        for module in modules
    ]
    shared = "All take `--help`, `--recipe FILE` and `--debug`. `--block-length=4` is the same as `--block_length 4`."
    return page("Programs and tools", shared, table(("program", "what it does"), rows))


def command_name(module: str) -> str:
    """How a program or tool is named in documents."""
    return module if module.startswith("tools.") else f"{module}.py"


def command_page(module: str) -> str:
    """The docstring of a program and a table of the flags of each group."""
    parser = parser_of(module)
    sections = [markdown(parser.description or ""), f"Source: `{module.replace('.', '/')}.py`."]
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        rows = [row_of(action) for action in shown if action.option_strings and action.dest != "help"]
        if rows:
            heading = "General" if group.title == "options" else group.title
            sections += [f"## {heading}", table(("flag", "meaning", "value", "default"), rows)]
    return page(command_name(module), *sections)


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a program builds for its command line."""

    def capture(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise ParserReadyError(parser)

    program = importlib.import_module(module)
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture):
        try:
            program.main([])
        except ParserReadyError as ready:
            return ready.parser
    raise RuntimeError(f"{module} reads no command line")


def row_of(action: argparse.Action) -> tuple[str, str, str, str]:
    """Name, meaning, values and default of a flag. Help texts end with `[default]`."""
    text = " ".join((action.help or "").replace("%%", "%").split())
    found = re.fullmatch(r"(.*?)\.? \[(.*)\]", text)
    text, default = (found[1], found[2]) if found else (text, "")
    values = " ".join(f"`{value}`" for value in re.split(r"[| ]", str(action.metavar or "")) if value)
    shown = BY_MACHINE.get(action.dest) or (f"`{default}`" if default else "")
    return f"`{action.option_strings[0]}`", prose(text), values, shown


def packages_page() -> str:
    """Every package of pretraining/ and every module in it, with the first lines of their docstrings."""
    sections = ["The first line of each docstring. See also [architecture](../explanation/architecture.md)."]
    for folder in sorted({path.parent for path in (PROJECT_DIR / "pretraining").rglob("*.py")}):
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        rows = [(f"`{path.name}`", prose(first_line(path))) for path in modules]
        sections += [f"## {folder.relative_to(PROJECT_DIR)}/", prose(first_line(folder / "__init__.py"))]
        sections += [table(("module", "what it does"), rows)] if rows else []
    return page("Packages and modules", *sections)


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring."""
    paragraph = (ast.get_docstring(ast.parse((PROJECT_DIR / path).read_text())) or "").split("\n\n")[0]
    return re.split(r"(?<=[.]) (?=[A-Z])", " ".join(paragraph.split()))[0]


def recipes_page() -> str:
    """Every recipe with its first comment: what for, the launch line, the hardware."""
    sections = [
        "A recipe is a YAML file of flags: a saved command line. Flags on the command line override it, and an unknown "
        "name or a value of the wrong type is an error with file and line."
    ]
    for path in sorted((PROJECT_DIR / "recipes").rglob("*.yaml")):
        comment = re.match(r"(?:#.*\n)*", path.read_text())
        lines = [line[1:].removeprefix(" ") for line in (comment[0] if comment else "").splitlines()]
        commands = [line.strip() for line in lines if line.startswith("  ")]
        text = prose(" ".join(line.strip() for line in lines if not line.startswith("  ")))
        sections += [f"## {path.relative_to(PROJECT_DIR)}", text, "\n".join(["```text", *commands, "```"])]
    return page("Recipes", *sections)


def guarantees_page() -> str:
    """Every `@pytest.mark.guarantee("...")` of tests/, with the test that holds it, by folder."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((PROJECT_DIR / "tests").rglob("test_*.py")):
        name = path.relative_to(PROJECT_DIR)
        for text, test in guarantees_of(path):
            rows.setdefault(f"{name.parent}/", []).append((prose(text), f"`{name.name}` `{test}`"))
    sections = ['Each guarantee is a marker on the test that fails if it is broken: `@pytest.mark.guarantee("...")`.']
    for folder, found in rows.items():
        sections += [f"## {folder}", table(("guarantee", "test"), found)]
    return page("Guarantees and their tests", *sections)


def guarantees_of(path: Path) -> Iterator[tuple[str, str]]:
    """Texts of the markers in a file, with the tests that carry them."""
    for node in ast.walk(ast.parse(path.read_text())):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.guarantee":
                yield ast.literal_eval(decorator.args[0]), getattr(node, "name", "")


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its indented lines are commands and become a code block."""
    parts = []
    for paragraph in docstring.strip().split("\n\n"):
        lines = paragraph.splitlines()
        is_code = all(line.startswith("    ") for line in lines)
        parts.append("\n".join(["```text", *(line[4:] for line in lines), "```"]) if is_code else prose(paragraph))
    return "\n\n".join(parts)


def prose(text: str) -> str:
    """A text with its flags as code, and stars, underscores and brackets that are not markup."""
    parts = re.split(r"(`[^`]*`|(?<![\w-])--[a-z]\w*)", text)
    code = [f"`{part.strip('`')}`" for part in parts[1::2]]
    plain = [re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


if __name__ == "__main__":
    sys.exit(main())
