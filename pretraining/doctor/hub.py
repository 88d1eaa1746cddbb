"""The Hugging Face Hub: reachable or not, and what the token may do. The token itself is never shown, nor any part."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.utils import build_hf_headers, get_session

from pretraining.doctor.finding import Finding, failure, ok, warning

TIMEOUT_SECONDS = 4.0
MOST_SKEW_SECONDS = 300  # signed uploads are refused at 15 minutes
LOGIN = "hf auth login"
LOGIN_TO_WRITE = "hf auth login  # a token with the role write: huggingface.co/settings/tokens"


def hub(_: Sequence[Path]) -> Iterator[Finding]:
    """One request tells all: whether the Hub answers, its clock, who the token is and what it may do."""
    place = shown_endpoint(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        yield ok("Hub", f"not asked, HF_HUB_OFFLINE is set; {_has(get_token())}")
        return
    token = get_token()
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2",
            headers=build_hf_headers(token=token or False),
            timeout=TIMEOUT_SECONDS,
        )
    except Exception as error:  # only its type is told: its words may hold the token, or a password in the address
        figure = f"{place} cannot be reached ({type(error).__name__}); {_has(token)}"
        yield warning("Hub", figure, "export HF_HUB_OFFLINE=1  # or HTTPS_PROXY, or HF_ENDPOINT of a mirror")
        return
    yield ok("Hub", f"{place} answers in {answer.elapsed.total_seconds():.1f} s", endpoint=place)
    yield from _clock(answer.headers.get("date", ""))
    yield judge_token(token is not None, answer.status_code, answer.json() if answer.status_code == 200 else {})


def judge_token(has_token: bool, status: int, who: dict[str, Any]) -> Finding:
    """What the Hub's answer to "who am I" means for downloads and pushes."""
    if not has_token:
        return warning("Hub token", "none: no pushes, no gated or private models and data sets", LOGIN_TO_WRITE)
    if status == 401:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the stored token"
        figure = f"{source} is refused (401); the Hub refuses public downloads with it as well"
        return failure("Hub token", figure, f"unset HF_TOKEN; {LOGIN} --force")
    if status != 200:
        return warning("Hub token", f"there is one; the Hub answered {status} to whose it is", "hf auth whoami")
    access = who.get("auth", {}).get("accessToken", {})
    role, name = access.get("role", "unknown"), who.get("name", "unknown")
    if role == "fineGrained":
        return _judge_fine_grained(name, access.get("fineGrained", {}))
    if role == "write":
        return ok("Hub token", f"of {name}, role write: pushes are allowed", name=name, role=role)
    return warning("Hub token", f"of {name}, role {role}: pushes will be refused", LOGIN_TO_WRITE, name=name, role=role)


def _judge_fine_grained(name: str, grants: dict[str, Any]) -> Finding:
    scoped = grants.get("scoped", [])
    places = [scope.get("entity", {}).get("name", "?") for scope in scoped if "repo.write" in scope["permissions"]]
    if places:
        figure = f"of {name}, fine-grained: pushes are allowed to {', '.join(places)}"
        return ok("Hub token", figure, name=name, role="fineGrained", writable=places)
    figure = f"of {name}, fine-grained, without write access to any repository: pushes will be refused"
    return warning("Hub token", figure, LOGIN_TO_WRITE, name=name, role="fineGrained")


def _clock(date: str) -> Iterator[Finding]:
    if not date:
        return
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    if abs(skew) > MOST_SKEW_SECONDS:
        figure = (
            f"{abs(skew) / 60:.0f} min {'ahead of' if skew > 0 else 'behind'} the Hub's: signed uploads are refused"
        )
        yield warning("clock", figure, "sudo timedatectl set-ntp true", skew_seconds=skew)


def _has(token: str | None) -> str:
    return "there is a token" if token else "there is no token"


def shown_endpoint(address: str) -> str:
    """An address without user and password.

    >>> shown_endpoint("https://me:secret@mirror.org:8443/hub")
    'https://mirror.org:8443/hub'
    """
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
