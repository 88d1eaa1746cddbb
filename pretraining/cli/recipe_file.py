"""Read a recipe: a YAML file of flags, as the words that they would be on a command line."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from pretraining.cli.flags import NONE_WORD, Flag, Setting
from pretraining.errors import UserError

MAX_RECIPE_BYTES = 1 << 18  # a recipe of every flag has 20 KB; YAML of this size takes 2 s to parse
MAX_NODES = 10_000  # of one value
MAX_DEPTH = 16


def recipe_settings(path: Path, flags: Mapping[str, Flag], problems: list[str]) -> list[Setting]:
    """The settings of a recipe, each with its line; keys and values that cannot be read are added to `problems`.

    Raises:
        UserError: when the file is not a recipe.
    """
    try:
        root = yaml.compose(_recipe_text(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--recipe {path}: cannot be read ({reason}); check the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"--recipe {path}: is not YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise UserError(f"--recipe {path}: is nested too deeply; expects lines of the form `flag: value`") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--recipe {path}: expects lines of the form `flag: value`")
    settings: dict[str, list[Setting]] = {}
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "this key"
        place = f"{path}:{key.start_mark.line + 1}: {name}"
        if name in settings:
            problems.append(f"{place}: duplicate key; keep one")
        try:
            _check_size(value)
            problems += [f"{path}:{line}: {name}: {key}: duplicate key; keep one" for line, key in _duplicates(value)]
            adds_up = name in flags and flags[name].adds_up and isinstance(value, yaml.SequenceNode)
            # Items of a list have separate lines: a list of phases takes many.
            items = [(f"{path}:{item.start_mark.line + 1}: {name}", item) for item in value.value] if adds_up else []
            settings[name] = [Setting(at, name, _texts(item)) for at, item in items or [(place, value)]]
        except (yaml.YAMLError, TypeError, ValueError):  # ValueError: a date or number that is none
            problems.append(f"{place}: expects a plain value, a list of them, or a mapping of plain values")
    return list(itertools.chain(*settings.values()))


def _recipe_text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe without a writer would be waited for without end
        raise UserError(f"--recipe {path}: is not a file; pass a YAML file of flags")
    with path.open("rb") as file:
        content = file.read(MAX_RECIPE_BYTES + 1)
    if len(content) > MAX_RECIPE_BYTES:
        raise UserError(f"--recipe {path}: is larger than {MAX_RECIPE_BYTES:,} bytes; pass a YAML file of flags")
    return content.decode("utf-8")


def _check_size(root: yaml.Node) -> None:
    """Raise ValueError for a value of too many words; aliases can make billions of a few lines, or one without end."""
    nodes, num_nodes = [(root, 1)], 0
    while nodes:
        node, depth = nodes.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError
        if isinstance(node, yaml.CollectionNode):
            children = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            nodes += [(child, depth + 1) for child in children]


def _duplicates(root: yaml.Node) -> Iterator[tuple[int, str]]:
    """Line and name of each key of a mapping inside `root`, of a checked size, that the mapping had before."""
    if isinstance(root, yaml.SequenceNode):
        yield from itertools.chain(*map(_duplicates, root.value))
    elif isinstance(root, yaml.MappingNode):
        names: set[str | None] = set()
        for key, value in root.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                yield key.start_mark.line + 1, key.value
            names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            yield from _duplicates(value)


def _texts(node: yaml.Node) -> list[str]:
    """The words that a YAML value would be on a command line: 3e-4 stays the text `3e-4`."""
    if isinstance(node, yaml.SequenceNode):
        return [text for item in node.value for text in _texts(item)]
    if isinstance(node, yaml.MappingNode):
        return [json.dumps(yaml.SafeLoader("").construct_document(node))]
    return [NONE_WORD if node.tag.endswith(":null") else node.value]
