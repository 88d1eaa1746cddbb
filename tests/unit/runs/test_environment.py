import subprocess
from pathlib import Path

import pytest

from pretraining.runs import environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("built_from", "state"),
    [
        (COMMIT, {"commit": COMMIT, "is_dirty": False}),
        (f"{COMMIT}-dirty", {"commit": COMMIT, "is_dirty": True}),
        ("", None),
        (None, None),
    ],
)
def test_an_image_has_the_commit_it_was_built_from(
    built_from: str | None, state: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PROJECT_DIR", tmp_path)
    monkeypatch.delenv(environment.COMMIT_VARIABLE, raising=False)
    if built_from is not None:
        monkeypatch.setenv(environment.COMMIT_VARIABLE, built_from)
    assert environment.git_state() == state


def test_a_repository_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True)
    monkeypatch.setattr(environment, "PROJECT_DIR", tmp_path)
    monkeypatch.setenv(environment.COMMIT_VARIABLE, COMMIT)
    state = environment.git_state()
    assert state is not None
    assert state["commit"] != COMMIT
    assert not state["is_dirty"]
