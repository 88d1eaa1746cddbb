"""The Hub as the doctor sees it: each kind of token, no Hub, a Hub that does not answer; the token is never shown."""

from pathlib import Path

import pytest

from pretraining.doctor.hub import assess_token
from tests.conftest import Done, assert_nowhere
from tests.fakes.doctoring import diagnose_some, find, findings
from tests.fakes.hub import LocalHub
from tests.fakes.hub.server import ALICE, ALICE_READS, DROP, HOLD
from tests.programs.launching import free_port

pytestmark = pytest.mark.launch


def ask(hub: LocalHub, tmp_path: Path, token: str | None, **env: str) -> Done:
    done = diagnose_some("Hub", "--json", env={"HF_TOKEN": "", **hub.env(tmp_path, token), **env})
    if token:
        assert_nowhere(token, done, tmp_path)
        assert_nowhere(token[3:12], done, tmp_path)
    return done


@pytest.mark.parametrize(
    ("token", "status", "words"),
    [
        (ALICE, "ok", "of alice, role write"),
        (ALICE_READS, "warning", "of alice, role read: pushes will be rejected"),
        (None, "warning", "none: no pushes"),
        ("hf_neverissuedtoanybody", "failure", "HF_TOKEN is rejected (401)"),
    ],
)
def test_what_the_token_may_do(hub: LocalHub, tmp_path: Path, token: str | None, status: str, words: str) -> None:
    done = ask(hub, tmp_path, token)
    assert words in find(done, "Hub token", status)["figure"]
    assert hub.url in find(done, "Hub", "ok")["figure"]
    assert len(hub.asked("whoami")) == 1
    assert done.returncode == (1 if status == "failure" else 0)


def test_a_stored_token_counts_too(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(ALICE)
    done = diagnose_some("Hub", "--json", env={**hub.env(tmp_path / "home", None), "HF_TOKEN": ""})
    assert "role write" in find(done, "Hub token", "ok")["figure"]
    assert ALICE not in done.output


@pytest.mark.parametrize("fault", [HOLD, DROP, 503])
def test_a_hub_that_does_not_answer_ends_no_one(hub: LocalHub, tmp_path: Path, fault: str | int) -> None:
    hub.faults = {"whoami": [fault]}
    done = ask(hub, tmp_path, ALICE, **({"SECONDS_OF_THE_HUB": "0.5"} if fault == HOLD else {}))
    if fault == 503:
        assert "the Hub answered 503" in find(done, "Hub token", "warning")["figure"]
    else:
        (found,) = findings(done)
        assert "cannot be reached" in found["figure"]
        assert "a token is configured" in found["figure"]
        assert found["fix"].startswith("export HF_HUB_OFFLINE=1")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{}", "http://me:password@127.0.0.1:{}", "http://me:password@[:{}"]
)
def test_no_hub_there(hub: LocalHub, tmp_path: Path, address: str) -> None:
    done = ask(hub, tmp_path, ALICE, HF_ENDPOINT=address.format(free_port()))
    (found,) = findings(done)
    assert found["status"] == "warning"
    assert "password" not in done.output


@pytest.mark.parametrize("token", ["hf_sécrètsécrèt", "hf_secret\x01secretsecret"])
def test_a_token_that_is_none_is_not_shown_in_the_error(hub: LocalHub, tmp_path: Path, token: str) -> None:
    (found, *_) = findings(ask(hub, tmp_path, token))
    assert found["group"] == "Hub"


def test_offline_by_choice_is_fine(hub: LocalHub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, ALICE, HF_HUB_OFFLINE="1")
    assert "not asked, HF_HUB_OFFLINE is set; a token is configured" in find(done, "Hub", "ok")["figure"]
    assert hub.log == []


def test_fine_grained_tokens() -> None:
    def who(*permissions: str) -> dict:
        scope = {"entity": {"type": "user", "name": "alice"}, "permissions": list(permissions)}
        access = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [scope]}}
        return {"name": "alice", "auth": {"accessToken": access}}

    assert assess_token(True, 200, who("repo.content.read", "repo.write")).figure.endswith(
        "pushes are allowed to alice"
    )
    assert assess_token(True, 200, who("repo.content.read")).status == "warning"
    assert assess_token(True, 200, {"name": "alice"}).status == "warning"
