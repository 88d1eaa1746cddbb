"""Names and texts of others act on nothing: not on the log, the terminal, the cards, the report."""

import dataclasses
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import markdown_it
import pytest

from pretraining.data.build.card import write_card
from pretraining.data.store.manifest import read_manifest
from tests.conftest import PROJECT_DIR, python, run_fine

pytestmark = pytest.mark.launch
TITLE, CLIPBOARD = "\x1b]0;owned\x07", "\x1b]52;c;cm0gLXJm\x07"
SOURCE = f"<script>alert(1)</script> | [x](http://a.b) `c`{TITLE}\nerror: forged"
STORY = json.loads((PROJECT_DIR / "data/sample/news.jsonl").read_text().splitlines()[0])["text"]
TEXT = f"{STORY}\n\tbefore {CLIPBOARD}\x9b31m\u202e after"
TRACE = [sys.executable, "-m", "tools.trace"]


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of a file, a source and documents with such names and texts; what preprocess.py said stands beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / f"news\n- (x) <b> `c`{TITLE}.jsonl"
    records = [{"text": f"{TEXT} {number}", "source": SOURCE} for number in range(12)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"text": "\\u001b[2J"\n')
    words = ["--data_files", path, "--block_length", 64, "--split", "1,0,0", "--output_dir", folder / "blocks"]
    done = run_fine(*python("preprocess.py", *words, "--license", "cc-by-4.0", "--max_skipped_fraction", 0.5))
    (folder / "said").write_text(done.stderr, newline="")
    return folder / "blocks"


def controls(text: str) -> set[str]:
    return {one for one in text if (ord(one) < 32 or 127 <= ord(one) < 160 or one == "\u202e") and one not in "\n\t"}


@pytest.mark.guarantee("No escape sequence reaches a log or a card.")
def test_the_log_and_the_card_show_them_as_characters(hostile_store: Path, tmp_path: Path) -> None:
    with (hostile_store.parent / "said").open(newline="") as file:
        said = file.read()
    assert not controls(said)
    assert "\nerror: " not in said
    manifest = read_manifest(hostile_store, flag="--dataset")
    (source,) = manifest.origin.sources
    origin = dataclasses.replace(manifest.origin, sources=[dataclasses.replace(source, source=SOURCE)])
    write_card(
        dataclasses.replace(manifest, origin=origin), tmp_path, license_name="cc-by-4.0"
    )  # as finetune.py has it
    for folder in (hostile_store, tmp_path):
        check_card(folder, hostile_store.parent)


def check_card(folder: Path, hidden: Path) -> None:
    card = (folder / "README.md").read_text()
    assert not controls(card)
    assert str(hidden) not in card
    front, body = card.split("---\n", 2)[1:]
    assert "license: cc-by-4.0\n" in front
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = {token.type for token in tokens} | {one.type for token in tokens for one in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    assert sum(token.type == "list_item_open" for token in tokens) == 7, "six lines of facts, one source"


def test_a_trace_shows_a_terminal_characters_and_a_pipe_the_text(hostile_store: Path) -> None:
    words = [*TRACE, hostile_store, "--block", 0, "--position", 3]
    piped = run_fine(*words).stdout
    assert piped.endswith(f":\n\n{TEXT} 0\n")
    shown = on_terminal([str(word) for word in words])
    assert not controls(shown)
    assert f"\tbefore {CLIPBOARD}\x9b31m\u202e".encode("unicode_escape").decode()[2:].replace("\\t", "") in shown
    assert [line for line in piped.splitlines() if line.startswith("error: ")] == [], "a name breaks the table"


def on_terminal(words: list[str]) -> str:
    """What a program writes on a terminal, whose line ends are the terminal's."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=PROJECT_DIR):
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")
