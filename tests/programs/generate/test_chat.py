"""generate.py --chat as a program: lines of a pipe, and a terminal with Ctrl-C."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pretraining.finetuning.chat_template import chat_template
from tests.conftest import HANG_SECONDS, PROJECT_DIR, assert_one_error, python
from tests.fakes.exported import export_random_model
from tests.programs.launching import run_forked, run_forked_fine

pytestmark = pytest.mark.launch

GREEDY = ["--greedy", "--repetition_penalty", 1, "--max_new_tokens", 12]
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def chat_model(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    template = chat_template(add_bos=False)
    return export_random_model(folder, sample_store, chat_template=template, initializer_range=0.2)


def rendered(model_dir: Path, messages: Messages) -> str:
    return AutoTokenizer.from_pretrained(model_dir).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


@pytest.mark.guarantee("An answer of `--chat` is the completion of the conversation in the model's chat template.")
def test_answers_are_completions_of_the_rendered_conversation(chat_model: Path) -> None:
    asked = ["Who?", "And then?"]
    done = run_forked_fine(
        *python("generate.py", "--model", chat_model, "--chat", *GREEDY), stdin="Who?\n\nAnd then?\n/reset\nWho?\n"
    )
    first, second, again, rest = done.stdout.split("\n\n")
    assert (again, rest) == (first, "")
    messages: Messages = []
    for question, answer in zip(asked, (first, second), strict=True):
        messages.append({"role": "user", "content": question})
        prompt = rendered(chat_model, messages)
        words = ["--model", chat_model, "--prompt", prompt, *GREEDY]
        assert run_forked_fine(*python("generate.py", *words)).stdout == f"{prompt}{answer}\n\n"
        messages.append({"role": "assistant", "content": answer})


def test_what_cannot_be_asked_is_one_line(chat_model: Path, sample_store: Path, tmp_path: Path) -> None:
    plain = export_random_model(tmp_path / "plain", sample_store)
    done = run_forked(*python("generate.py", "--model", plain, "--chat"), stdin="Who?\n")
    assert_one_error(done, f"--model {plain}: has no chat template", "use --prompt, or", "finetune.py")
    assert "loaded in" not in done.stderr
    for flags, part in {
        ("--chat", "--prompt", "Who?"): "--prompt, --prompt_file, --interactive, --chat: exclude each other",
        ("--chat", "--num_samples", "2"): "--chat: has one answer per message",
        ("--chat", "--output", "a.jsonl"): "--output: excludes --interactive and --chat",
        ("--system", "Be brief."): "--system: has no effect without --chat",
    }.items():
        assert_one_error(run_forked(*python("generate.py", "--model", chat_model, *flags)), part)
    done = run_forked(*python("generate.py", "--model", chat_model, "--chat", *GREEDY), stdin="Who is </s>?\nWho?\n")
    assert_one_error(done, "has the name of the control token </s>")
    assert done.stdout == ""


class Terminal:
    """A program on a terminal: what it shows, and keys that are pressed."""

    def __init__(self, *words: object) -> None:
        self._ours, theirs = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.child = subprocess.Popen(
            [str(word) for word in words],
            cwd=PROJECT_DIR,
            env={**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.shown = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str) -> str:
        """Everything up to this text, which is then removed from `shown`."""
        deadline = time.monotonic() + HANG_SECONDS
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), self.shown
        before, _, self.shown = self.shown.partition(text)
        return before

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self.child.wait(HANG_SECONDS)

    def _read(self) -> bool:
        select.select([self._ours], [], [], HANG_SECONDS)
        try:
            piece = os.read(self._ours, 1 << 16)
        except OSError:  # nobody holds the other end any more
            return False
        self.shown += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


def _take_terminal() -> None:
    """Make stdin the terminal of the new session, whose Ctrl-C reaches the program."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def endless(folder: Path, store: Path) -> Path:
    """A model whose answers never end by themselves: EOS has the logit 0, and some other token more."""
    model = export_random_model(
        folder,
        store,
        chat_template=chat_template(add_bos=False),
        initializer_range=0.2,
        max_position_embeddings=1 << 16,
    )
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][2] = torch.zeros_like(weights["lm_head.weight"][2])
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.guarantee("Ctrl-C ends an answer of `--chat`, and not the conversation.")
def test_ctrl_c_ends_the_answer_and_ctrl_d_the_program(sample_store: Path, tmp_path: Path) -> None:
    model = endless(tmp_path / "endless", sample_store)
    words = ["--model", model, "--chat", "--greedy", "--repetition_penalty", 1, "--max_new_tokens", 60_000]
    terminal = Terminal(*python("generate.py", *words))
    terminal.wait_for("Ctrl-C ends an answer")
    terminal.wait_for("you> ")
    for _ in range(2):
        terminal.press("Who?\n")
        terminal.wait_for("Who?\n")  # the echo
        while len(terminal.shown.split()) < 3:  # words of the answer
            assert terminal._read()
        terminal.press("\x03")
        terminal.wait_for("you> ")
    assert terminal.child.poll() is None
    terminal.press("/reset\n")
    terminal.wait_for("the conversation is empty again")
    terminal.wait_for("you> ")
    terminal.press("What is </s>?\n")
    terminal.wait_for("error: --chat: the message has the name of the control token </s>")
    terminal.wait_for("you> ")
    terminal.press("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
