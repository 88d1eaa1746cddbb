"""Build the Dockerfile's image as a folder, without a container engine, and run commands in it.

    python3 -m tests.programs.container.chroot FOLDER       # as root, on Linux with mmdebstrap; 3 GB, about ten minutes

In place of the base image it takes a minimal Debian of the same release, with Debian's Python. Each RUN is executed by
chroot in a separate mount and process namespace. Commands in the image start as in a container without a network: its
entrypoint is process 1, and the user is the one that USER names.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import psutil

from tests.conftest import PROJECT_DIR
from tests.programs.container.dockerfile import Instruction, Stage, filled_in, stages_of

RELEASE = "bookworm"
# What python:3.11-slim has: Python with its headers and venv, and the certificates of authorities.
PACKAGES = "python3,python3-dev,python3-venv,ca-certificates"
FIRST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a machine needs to reach the network, a container engine lends to a build as well.
LENT_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")

# An address, as a container on a bridge has: without one DeepSpeed does not start under mpirun (`hostname -I`).
NETWORK = (
    "ip link set lo up",
    "ip link add eth0 type veth peer name eth1",
    "ip addr add 10.0.2.15/24 dev eth0",
    "ip link set eth0 up",
)


@dataclass
class Image:
    """A stage that was built: its folder, and what the instructions have set."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": FIRST_PATH})
    folder: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def words(self, *command: str, has_network: bool) -> list[str]:
        """The command line of this machine by which a command is process 1 of a container.

        Without this machine's network it has separate ports, and reaches nothing but itself.
        """
        variables = [f"{name}={value}" for name, value in self._variables().items()]
        root, folder = shlex.quote(str(self.root)), shlex.quote(self.folder)
        inside = f'/bin/sh -c \'cd "$0" && exec "$@"\' {folder} {shlex.join(["env", "-i", *variables, *command])}'
        lines = ["mount --make-rprivate /", *self._mounts(), *([] if has_network else NETWORK)]
        script = "\n".join(["set -e", *lines, f"exec chroot --userspec={self.user} {root} {inside}"])
        spaces = ["--mount", "--pid", *([] if has_network else ["--net"])]
        return ["unshare", *spaces, "--fork", "sh", "-c", script]

    @contextmanager
    def running(self, *command: str) -> Iterator["subprocess.Popen[str]"]:
        """A command, started by the entrypoint; without any, the default command. Its container ends with the block."""
        words = self.words(*self.entrypoint, *(command or self.command), has_network=False)
        started = subprocess.Popen(
            words, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield started
        finally:
            if started.poll() is None:
                process_1(started).kill()  # unshare's --kill-child does not, as process 1 has changed its user
                started.wait()

    def set(self, one: Instruction) -> None:
        """Keep what an instruction says about commands that start later."""
        if one.name == "WORKDIR":
            self.folder = one.text
            (self.root / one.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif one.name == "USER":
            self.user = one.text
        elif one.name == "ENTRYPOINT":
            self.entrypoint = one.words
        elif one.name == "CMD":
            self.command = one.words

    def run(self, text: str) -> None:
        """Execute a RUN."""
        subprocess.run(self.words("sh", "-c", text, has_network=True), check=True)

    def _variables(self) -> dict[str, str]:
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        return {"HOME": home, **(pip_settings() if self.user == "root" else {}), **self.environment}

    def _mounts(self) -> list[str]:
        lent = [path for path in (*LENT_FILES, *pip_files()) if Path(path).exists()]
        for path in lent:
            place = self.root / path.lstrip("/")
            if Path(path).is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        binds = [f"mount --rbind {path} {shlex.quote(f'{self.root}{path}')}" for path in ("/dev", *lent)]
        return [*binds, f"mount -t proc proc {shlex.quote(f'{self.root}/proc')}"]


def process_1(started: "subprocess.Popen[str]") -> psutil.Process:
    """Process 1 of a container, with which all others of it end."""
    (found,) = psutil.Process(started.pid).children()
    return found


def pip_settings() -> dict[str, str]:
    """The settings of this machine's pip, its index above all, as environment variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    return {f"PIP_{name.upper().replace('-', '_')}": value.replace("\\n", " ") for name, value in settings}


def pip_files() -> list[str]:
    """Files and folders of this machine that its pip reads: constraints, wheels, an index with the files beside it."""
    values = " ".join(pip_settings().values())
    found = [Path(path) for path in re.findall(r"(?:^|\s|file://)(/[^\s]+)", values)]
    return [str(path.parent if path.name == "simple" else path) for path in dict.fromkeys(found)]


class Build:
    """Builds the stages of the Dockerfile below a folder; `arguments` as of --build-arg."""

    def __init__(self, work: Path, arguments: dict[str, str]) -> None:
        self._work, self._arguments = work, arguments
        self._images: dict[str, Image] = {}

    def build(self) -> Image:
        """Build all stages; returns the last."""
        base = self._work / "base"
        if not base.exists():
            options = ["--variant=minbase", f"--include={PACKAGES}", RELEASE]
            subprocess.run(["mmdebstrap", "--quiet", *options, base], check=True)
        for number, stage in enumerate(stages_of()):
            root = self._work / f"stage-{number}"
            subprocess.run(["cp", "-a", base, root], check=True)
            self._images[stage.name] = self._build_stage(stage, Image(root))
        return self._images[stage.name]

    def _build_stage(self, stage: Stage, image: Image) -> Image:
        arguments: dict[str, str] = {}
        for one in stage.instructions:
            say(f"[{stage.name or 'image'}] {one.name} {one.text}")
            values = {**arguments, **image.environment}
            if one.name == "ARG":
                name, _, default = one.text.partition("=")
                arguments[name] = self._arguments.get(name, default)
            elif one.name == "ENV":
                image.environment |= [word.split("=", 1) for word in filled_in(one.text, values).split()]
            elif one.name == "COPY":
                self._copy(image, one.words)
            elif one.name == "RUN":
                image.run(filled_in(one.text, values))
            else:
                image.set(one)
        return image

    def _copy(self, image: Image, words: list[str]) -> None:
        target = image.root / words[-1].lstrip("/")
        if words[0].startswith("--from="):
            other = self._images[words[0].removeprefix("--from=")]
            for source in words[1:-1]:  # with hard links: the other stage is not changed any more
                subprocess.run(["cp", "-al", other.root / source.lstrip("/"), target], check=True)
        else:
            copy_from_checkout(words[:-1], target)


def copy_from_checkout(names: list[str], target: Path) -> None:
    """Copy files or folders of the checkout into a folder, without what .dockerignore names."""
    target.mkdir(parents=True, exist_ok=True)
    for source in (PROJECT_DIR / name for name in names):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, target)


def ignored(folder: str, names: Sequence[str]) -> set[str]:
    """The names in a folder of the checkout that .dockerignore keeps out; patterns without `**/` are for its top."""
    at_top = Path(folder) == PROJECT_DIR
    lines = (PROJECT_DIR / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and line[0] != "#" and (at_top or line.startswith("**/"))]
    return {name for name in names if any(fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns)}


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Build into the folder that is given, and start the default command."""
    image = Build(Path(sys.argv[1]).absolute(), {}).build()
    with image.running() as started:
        say(started.communicate()[0])
    sys.exit(started.returncode)


if __name__ == "__main__":
    main()
