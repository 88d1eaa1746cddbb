"""The routes of a Hub that carry files: LFS in one piece or in parts, Xet tokens, downloads."""

import hashlib
import re
import time

from tests.fakes.hub.repositories import Entry, RefusedError
from tests.fakes.hub.routing import REPO, Answer, Call, route

PART_BYTES = 40_000  # a larger file is sent in parts
XET_TOKEN_SECONDS = 3600
LFS = r"/(?:(dataset|space)s/)?([^/]+/[^/]+)"


def batch(call: Call) -> Answer:
    """Where to send each object; one without `actions` is here already."""
    call.writable()
    objects = []
    for asked in call.json["objects"]:
        oid, num_bytes = asked["oid"], asked["size"]
        actions = {"upload": _upload(call, oid, num_bytes), "verify": {"href": f"{call.url}/_verify/{oid}"}}
        here = hashlib.sha256(call.storage.blobs.get(oid, b"")).hexdigest() == oid
        objects.append({"oid": oid, "size": num_bytes, **({} if here else {"actions": actions})})
    return Answer({"transfer": "basic", "objects": objects})


def _upload(call: Call, oid: str, num_bytes: int) -> dict:
    if num_bytes <= PART_BYTES:
        return {"href": f"{call.url}/_put/{oid}"}
    num_parts = -(-num_bytes // PART_BYTES)
    parts = {f"{part:05d}": f"{call.url}/_part/{oid}/{part}" for part in range(1, num_parts + 1)}
    return {"href": f"{call.url}/_complete/{oid}", "header": {"chunk_size": str(PART_BYTES), **parts}}


def put(call: Call) -> Answer:
    _store(call, call.words[0], call.body)
    return Answer()


def part(call: Call) -> Answer:
    call.storage.blobs["/".join(call.words)] = call.body
    return Answer(headers={"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


def complete(call: Call) -> Answer:
    oid = call.words[0]
    numbers = sorted(sent["partNumber"] for sent in call.json["parts"])
    _store(call, oid, b"".join(call.storage.blobs[f"{oid}/{number}"] for number in numbers))
    return Answer()


def _store(call: Call, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise RefusedError(400, "the content is not that of the object's hash")
    call.storage.blobs[oid] = call.damage(content)


def verify(call: Call) -> Answer:
    if call.words[0] not in call.storage.blobs:
        raise RefusedError(404, "Object does not exist")
    return Answer()


def xet_token(call: Call) -> Answer:
    """Where the Xet client stores or reads chunks, and for how long it may."""
    if call.words[2] == "write":
        call.writable()
    else:
        call.readable()
    expires = str(int(time.time()) + XET_TOKEN_SECONDS)
    headers = {"X-Xet-Cas-Url": call.xet.url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": expires}
    return Answer({"casUrl": call.xet.url, "accessToken": "xet", "exp": int(expires)}, headers)


def resolve(call: Call) -> Answer:
    """A file of a revision, or a range of it."""
    repository = call.readable()
    commit = repository.resolve(call.words[2])
    entry = repository.trees[commit].get(call.words[3])
    if entry is None:
        raise RefusedError(404, "Entry not found", code="EntryNotFound", **{"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
    if entry.sha256:
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.num_bytes)}
    xet_hash = None if entry.etag in call.storage.blobs else call.xet.hashes()[entry.etag]
    if xet_hash:
        refresh = f"{call.url}/api/{repository.kind}s/{repository.name}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{refresh}>; rel="xet-auth"'}
    if call.method == "HEAD":
        return Answer(b"", {**headers, "Content-Length": str(entry.num_bytes)})
    return _content(call, call.damage(_bytes_of(call, entry, xet_hash)), headers)


def _bytes_of(call: Call, entry: Entry, xet_hash: str | None) -> bytes:
    return call.xet.read(xet_hash, entry.num_bytes) if xet_hash else call.storage.blobs[entry.etag]


def _content(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if asked is None:
        return Answer(content, headers)
    first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
    if first >= len(content):
        raise RefusedError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Answer(content[first : last + 1], headers, 206)


FILE_ROUTES = [
    route("POST", LFS + r"\.git/info/lfs/objects/batch", batch),
    route("PUT", r"/_put/([0-9a-f]{64})", put),
    route("PUT", r"/_part/([0-9a-f]{64})/(\d+)", part),
    route("POST", r"/_complete/([0-9a-f]{64})", complete),
    route("POST", r"/_verify/([0-9a-f]{64})", verify),
    route("GET", REPO + r"/xet-(read|write)-token/([^/]+)", xet_token),
    route("GET|HEAD", LFS + r"/resolve/([^/]+)/(.+)", resolve),
]
