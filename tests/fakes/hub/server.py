"""The HTTP server of a local Hub: who asks, which route answers, and the faults that a test ordered."""

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.hub.api import API_ROUTES
from tests.fakes.hub.files import FILE_ROUTES
from tests.fakes.hub.repositories import RefusedError, Storage, User
from tests.fakes.hub.routing import Answer, Call
from tests.fakes.hub.xet import XetStore

ROUTES = [*API_ROUTES, *FILE_ROUTES]
# Faults beside a status code, of which 0 means none.
DROP = "drop"  # the connection breaks, nothing is done
LOSE = "lose"  # it is done, but the connection breaks before the answer
HOLD = "hold"  # nothing happens until the test stops holding, then the connection breaks
FLIP, CUT = "flip", "cut"  # other bytes are stored than arrived
ALICE, ALICE_READS, BOB = "hf_alice_secret", "hf_alice_reads", "hf_bob_secret"  # tokens
USERS = {ALICE: User("alice"), ALICE_READS: User("alice", can_write=False), BOB: User("bob")}


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    route: str
    method: str
    path: str
    num_bytes: int
    user: str | None


@dataclass
class LocalHub:
    """A running Hub; `faults` holds for each route the faults of its next requests, the first first."""

    storage: Storage
    xet: XetStore
    url: str = ""
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    log: list[Asked] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def env(self, hf_home: Path, token: str | None, *, xet: bool = False) -> dict[str, str]:
        """The environment of one machine that talks to this Hub; the client reads it when it is imported."""
        environment = {"HF_ENDPOINT": self.url, "HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_XET_CACHE": str(hf_home / "xet")}
        return environment | ({"HF_TOKEN": token} if token else {})

    def read(self, kind: str, name: str, path: str) -> bytes:
        """A file of the newest commit."""
        repository = self.storage.repositories[kind, name]
        entry = repository.trees[repository.head][path]
        if entry.etag in self.storage.blobs:
            return self.storage.blobs[entry.etag]
        return self.xet.read(self.xet.hashes()[entry.etag], entry.num_bytes)

    def asked(self, route: str) -> list[Asked]:
        return [asked for asked in self.log if asked.route == route]

    def stop_holding(self) -> None:
        """Let the held requests go on, and hold no other."""
        self.faults = {}
        self.released.set()

    def next_fault(self, route: str) -> int | str:
        with self.lock:
            waiting = self.faults.get(route)
            return waiting.pop(0) if waiting else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a header and its body are two writes, the second of which would wait 40 ms
    hub: LocalHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self._read_body()
        for method, pattern, answer in ROUTES:
            match = pattern.fullmatch(url.path)
            if match and self.command in method.split("|"):
                self._answer(answer, [unquote(word or "") for word in match.groups()], parse_qs(url.query), body)
                return
        self._refuse(RefusedError(404, f"no route for {self.command} {url.path}"))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self, answer: Any, words: list[str], query: dict[str, list[str]], body: bytes) -> None:
        hub, route = self.hub, answer.__name__
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = hub.storage.users.get(token)
        hub.log.append(Asked(route, self.command, self.path, len(body), user.name if user else None))
        fault = hub.next_fault(route)
        if fault == HOLD:
            hub.released.wait(60)
        if fault in (DROP, HOLD):
            self._break()
            return
        try:
            if isinstance(fault, int) and fault:
                raise RefusedError(fault, f"ordered {fault}", **({"Retry-After": "0"} if fault == 429 else {}))
            if token and user is None:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            call = Call(hub.storage, hub.xet, hub.url, user, self.command, words, query, self.headers, body)
            with hub.lock:
                done = answer(call if fault not in (FLIP, CUT) else call.with_other_bytes(str(fault)))
        except RefusedError as refusal:
            self._refuse(refusal)
            return
        if fault == LOSE:
            self._break()
        else:
            self._send(done)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while num_bytes := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(num_bytes)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _break(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _refuse(self, refusal: RefusedError) -> None:
        self._send(Answer({"error": refusal.message}, refusal.headers, refusal.status))

    def _send(self, answer: Answer) -> None:
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        kind = "application/octet-stream" if isinstance(answer.content, bytes) else "application/json"
        self.send_response(answer.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # whoever asked may be gone
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    """A Hub with two users and nothing on it, until the block ends."""
    xet_dir = Path(tempfile.mkdtemp(prefix="hub-xet-"))
    hub = LocalHub(Storage(USERS), XetStore(xet_dir))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(xet_dir)


@contextmanager
def local_hub(repositories: dict[str, Path], cache_dir: Path) -> Iterator[dict[str, str]]:
    """Serve `repositories` as public models by name; yields the environment in which the Hub's client finds them."""
    with running_hub() as hub:
        for name, folder in repositories.items():
            hub.storage.serve_folder("model", name, folder, private=False)
        yield hub.env(cache_dir, token=None)
