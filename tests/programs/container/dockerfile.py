"""Read a Dockerfile: its stages and their instructions, with arguments filled in."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PROJECT_DIR

DOCKERFILE = PROJECT_DIR / "Dockerfile"
KNOWN = ("ARG", "FROM", "COPY", "WORKDIR", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, and the rest of its lines, joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a list in JSON, or those between spaces."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()


@dataclass
class Stage:
    """What follows a FROM: the image or stage that it starts from, its own name, and its instructions."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> list[str]:
        """The words of the last instruction of a name."""
        return [one for one in self.instructions if one.name == name][-1].words


def instructions_of(text: str) -> Iterator[Instruction]:
    """The instructions of a Dockerfile; what this reader does not know is an error."""
    without_comments = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", without_comments).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            assert name in KNOWN, line
            yield Instruction(name, rest.strip())


def stages_of(path: Path = DOCKERFILE) -> list[Stage]:
    """The stages in their order; the arguments before the first are put into FROM."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for one in instructions_of(path.read_text()):
        if one.name == "FROM":
            base, _, name = filled_in(one.text, arguments).partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append(one)
        else:
            arguments |= [one.text.split("=", 1)]
    return stages


def filled_in(text: str, values: Mapping[str, str]) -> str:
    """A text with `${NAME}` replaced; a name without a value is an error, as in a build it would be empty."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)
