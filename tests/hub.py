"""A Hub on this machine that serves folders as repositories, enough of its HTTP for downloads by the real client."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, Path]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = words[:2] == ["api", "models"]
        name, rest = "/".join(words[2:4] if is_api else words[:2]), words[4:] if is_api else words[2:]
        if name not in self.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif is_api:
            self._send_listing(name, self.repositories[name], rest)
        elif rest[:1] == ["resolve"]:
            self._send_file(self.repositories[name] / "/".join(rest[2:]))
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _send_listing(self, name: str, folder: Path, rest: list[str]) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        if rest[:1] == ["tree"]:
            under = folder / "/".join(rest[2:])
            nodes = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0"}
                for path in paths
                if under in path.parents
            ]
            if nodes:
                self._send(200, json.dumps(nodes).encode())
            else:
                self._send(404, b'{"error": "no such folder"}', {"X-Error-Code": "EntryNotFound"})
        else:
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in paths]
            info = {"id": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(info).encode())

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub(repositories: dict[str, Path], cache_dir: Path) -> Iterator[dict[str, str]]:
    """Serve `repositories` by name; yields the environment in which the Hub's client finds them."""
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(cache_dir),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
    finally:
        server.shutdown()
        thread.join()
