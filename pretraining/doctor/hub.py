"""The Hugging Face Hub: whether it answers, and what the token may do. No part of the token is ever shown."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if

TIMEOUT_SECONDS = 4.0
MAX_SKEW_SECONDS = 300  # signed uploads are rejected at 15 minutes
LOGIN = "hf auth login"
LOGIN_TO_WRITE = "hf auth login  # a token with the role write: huggingface.co/settings/tokens"


def hub(_: Sequence[Path]) -> Iterator[Finding]:
    """One request shows whether the Hub answers, its clock, whose the token is and what it may do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    endpoint, token = without_password(constants.ENDPOINT), get_token()
    has_token = "a token is configured" if token else "no token is configured"
    if constants.HF_HUB_OFFLINE:
        yield ok("Hub", f"not asked, HF_HUB_OFFLINE is set; {has_token}")
        return
    try:
        url = f"{constants.ENDPOINT}/api/whoami-v2"
        answer = get_session().get(url, headers=build_hf_headers(token=token or False), timeout=TIMEOUT_SECONDS)
    except Exception as error:  # only its type is shown: its text may hold the token, or a password in the address
        figure = f"{endpoint} cannot be reached ({type(error).__name__}); {has_token}"
        yield warning("Hub", figure, "export HF_HUB_OFFLINE=1  # or HTTPS_PROXY, or HF_ENDPOINT of a mirror")
        return
    yield ok("Hub", f"{endpoint} answers in {answer.elapsed.total_seconds():.1f} s", endpoint=endpoint)
    yield from assess_clock(answer.headers.get("date", ""))
    yield assess_token(token is not None, answer.status_code, answer.json() if answer.status_code == 200 else {})


def assess_token(has_token: bool, status: int, who: dict[str, Any]) -> Finding:
    """What the Hub's answer to "who am I" means for downloads and pushes."""
    if not has_token:
        return warning("Hub token", "none: no pushes, no gated or private models and data sets", LOGIN_TO_WRITE)
    if status == 401:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the stored token"
        figure = f"{source} is rejected (401); with it the Hub rejects public downloads as well"
        return failure("Hub token", figure, f"unset HF_TOKEN; {LOGIN} --force")
    if status != 200:
        return warning("Hub token", f"there is one; the Hub answered {status} to whose it is", "hf auth whoami")
    access = who.get("auth", {}).get("accessToken", {})
    role, name = access.get("role", "unknown"), who.get("name", "unknown")
    scopes = access.get("fineGrained", {}).get("scoped", [])
    writable = [one.get("entity", {}).get("name", "?") for one in scopes if "repo.write" in one["permissions"]]
    allowed = f"are allowed to {', '.join(writable)}" if writable else "are allowed" if role == "write" else None
    figure = f"of {name}, role {role}: pushes {allowed or 'will be rejected'}"
    return warning_if(allowed is None, "Hub token", figure, LOGIN_TO_WRITE, name=name, role=role)


def assess_clock(date: str) -> Iterator[Finding]:
    """A warning where this machine's clock differs from the Date header of the Hub's answer."""
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else 0.0
    if abs(skew) > MAX_SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        figure = f"{abs(skew) / 60:.0f} min {direction} the Hub's: signed uploads are rejected"
        yield warning("clock", figure, "sudo timedatectl set-ntp true", skew_seconds=skew)


def without_password(url: str) -> str:
    """A URL without user and password.

    >>> without_password("https://me:secret@mirror.org:8443/hub")
    'https://mirror.org:8443/hub'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
