"""A recipe is a saved command line: YAML or flags, one reader and one set of checks.

A value on the command line beats the recipe's, which beats the default; a flag that is given again beats its earlier
value, unless its values add up. All problems are reported at once, each with the recipe's line or the flag: an unknown
name with the nearest right one, a wrong type, a wrong choice, a duplicate key.
"""

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretraining.cli.flags import (
    EXCLUDED_BY,
    HIDDEN,
    NONE_WORD,
    Flag,
    Setting,
    exclusion_problems,
    flag_problem,
    flags_of,
)
from pretraining.errors import UserError, raise_problems

DASHED_NAME = re.compile("(?<=^--)[^=]+")
UNSET = (["none"], ["-1"])  # values with which a flag leaves its place to another one
HOOK_ENDING = "_hook"  # of flags that name a function

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FlagGroup:
    """Flags that belong together, under one title of --help, and what is built from the values that were given."""

    title: str
    flags: list[Flag]
    build: Callable[[dict[str, Any]], Any]
    rejected: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names that are not flags, with the reason


def dataclass_group(title: str, argument_type: Any) -> FlagGroup:
    """The flags of a dataclass; a field that is not given keeps its default."""
    return FlagGroup(title, flags_of(argument_type), lambda values: argument_type(**values))


def parse_recipe(
    description: str, groups: Sequence[FlagGroup], argv: Sequence[str], *, first: Sequence[str] = ()
) -> list[Any]:
    """Read recipe and flags into what each group builds, in the order of `groups`.

    The values of the flags `first` may also come first, without the names of the flags.

    Raises:
        UserError: with all problems of recipe and command line at once.
    """
    flags = {flag.name: flag for group in groups for flag in group.flags}
    rejected = {name: reason for group in groups for name, reason in group.rejected.items()}
    problems: list[str] = []
    parser, words = _help_parser(description, groups, first), _with_names(first, argv)
    command_line, recipe_path = _command_line_settings(parser, words, flags, rejected, problems)
    replaced = {other for name in _given(command_line) for other in EXCLUDED_BY.get(name, ())}
    recipe = [] if recipe_path is None else _recipe_settings(recipe_path, flags, problems)
    settings = [setting for setting in recipe if setting.name not in replaced] + command_line
    values, out_of_range = _checked_values(settings, flags, rejected, problems)
    built = [] if problems else _built(groups, values, out_of_range)
    problems += out_of_range + exclusion_problems(_given(settings))
    raise_problems(problems)
    for name in {setting.name for setting in settings} - {setting.name for setting in command_line}:
        if name.endswith(HOOK_ENDING) and values[name] is not None:
            logger.warning("recipe %s runs code: --%s %s", recipe_path, name, values[name])
    return built


def _given(settings: Iterable[Setting]) -> dict[str, list[str]]:
    """The words of the flags that are set, without those that leave their place to another one."""
    last = {setting.name: setting.texts for setting in settings}
    return {name: texts for name, texts in last.items() if texts not in UNSET}


def _with_names(names: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The command line with the flags' names before its first words, and `--block-length` as `--block_length`."""
    words, named = list(argv), []
    for name in names:
        if words and not words[0].startswith("-"):
            named += [f"--{name}", words.pop(0)]
    return named + [DASHED_NAME.sub(lambda found: found[0].replace("-", "_"), word) for word in words]


def _built(groups: Sequence[FlagGroup], values: dict[str, Any], problems: list[str]) -> list[Any]:
    """What each group builds; what it finds wrong is added to `problems`."""
    built = []
    for group in groups:
        try:
            built.append(group.build({f.name: values[f.name] for f in group.flags if f.name in values}))
        except UserError as error:
            problems += error.problems
    return built


def _checked_values(
    settings: list[Setting], flags: dict[str, Flag], rejected: Mapping[str, str], problems: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """The values, which have the right types unless that is added to `problems`; and those that are out of range."""
    values: dict[str, Any] = {}
    out_of_range: list[str] = []
    for place, name, texts in settings:
        if name not in flags:
            problems.append(f"{place}: {flag_problem(name, flags, rejected)}")
            continue
        try:
            value = flags[name].value(texts)
        except ValueError as error:
            problems += [f"{place}: {problem}" for problem in error.args]
            continue
        values[name] = (values.get(name) or []) + value if flags[name].adds_up and value else value
        out_of_range += [f"{place} {problem}" for problem in flags[name].range_problems(texts, value)]
    return values, out_of_range


def _command_line_settings(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    names: Iterable[str],
    rejected: Mapping[str, str],
    problems: list[str],
) -> tuple[list[Setting], Path | None]:
    known, unknown = parser.parse_known_args(words)
    for word in unknown:
        if word.startswith("-"):
            problems.append(f"{word}: {flag_problem(word.lstrip('-').split('=')[0], names, rejected)}")
    if unknown and not unknown[0].startswith("-"):  # later words belong to the unknown flag before them
        problems.append(f"{unknown[0]}: unexpected value (flags are `--name value`)")
    recipe_path = vars(known).pop("recipe", None)
    vars(known).pop("debug", None)  # `run_program` looks for it, since it must hold while the flags are read too
    settings = [Setting(f"--{name}", name, texts) for name, groups in vars(known).items() for texts in groups]
    return settings, recipe_path


def _recipe_settings(path: Path, flags: Mapping[str, Flag], problems: list[str]) -> list[Setting]:
    from pretraining.cli.recipe_file import recipe_settings  # YAML takes 15 ms, for the runs that have a recipe

    return recipe_settings(path, flags, problems)


def _help_parser(description: str, groups: Sequence[FlagGroup], first: Sequence[str]) -> argparse.ArgumentParser:
    module = getattr(sys.modules["__main__"], "__spec__", None)  # None where a file is started by its path
    parser = argparse.ArgumentParser(
        prog=f"python3 -m {module.name.removesuffix('.__main__')}" if module else None,
        description=description,
        usage=" ".join(["%(prog)s", *(f"[{name.upper()}]" for name in first), "[--recipe FILE] [--flag value ...]"]),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,  # otherwise --dty silently means --dtype
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML file of flags; the command line beats it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for group in groups:
        section = parser.add_argument_group(group.title)
        for flag in group.flags:
            section.add_argument(
                f"--{flag.name}", action="append", nargs="*", metavar=_metavar(flag), help=_help_text(flag)
            )
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows `--flag VALUE`: argparse itself takes any number of words, so that `Flag` can check them."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(default_metavar if action.metavar is None else action.metavar)


def _metavar(flag: Flag) -> str:
    if flag.value_type is bool:
        return "true|false" if flag.default is not False else ""  # `--flag` alone switches it on
    word = "|".join(flag.choices) if flag.choices else flag.value_type.__name__.upper()
    if flag.choices and flag.value_type is not str:
        word = f"{flag.value_type.__name__.upper()}|{word}"
    return f"{word} ..." if flag.is_list else word


def _help_text(flag: Flag) -> str:
    if flag.help == HIDDEN:
        return HIDDEN
    default = " ".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
    shown = NONE_WORD if default is None else str(default).lower() if isinstance(default, bool) else default
    return f"{flag.help.rstrip('.')}. [{shown}]".replace("%", "%%")
