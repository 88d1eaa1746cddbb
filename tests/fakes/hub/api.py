"""The JSON routes of a Hub: repositories, trees and commits."""

import base64
import hashlib
import json
import math
import re
from urllib.parse import parse_qs

import yaml

from tests.fakes.hub.repositories import Entry, RefusedError, Repository, Tree, is_large, large_entry
from tests.fakes.hub.routing import REPO, Answer, Call, route

NODES_PER_PAGE = 4  # the Hub has 1,000; few, so that tests turn pages
FILES_PER_PREUPLOAD = 256
HUB_NAME = re.compile(r"(?:[\w-]+/)?[\w.-]+")
LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "odc-by", "other", "unknown"}  # some of the Hub's list


def whoami(call: Call) -> Answer:
    if call.user is None:
        raise RefusedError(401, "Invalid username or password.")
    role = "write" if call.user.can_write else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Answer({"type": "user", "id": call.user.name, "name": call.user.name, "orgs": [], "auth": token})


def create(call: Call) -> Answer:
    if call.user is None:
        raise RefusedError(401, "Invalid username or password.")
    asked = call.json
    kind, owner = asked.get("type") or "model", asked.get("organization") or call.user.name
    if owner != call.user.name or not call.user.can_write:
        raise RefusedError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    name = f"{owner}/{asked['name']}"
    place = {"url": f"{call.url}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name, "id": name}
    if (kind, name) in call.storage.repositories:
        return Answer({**place, "error": f"You already created this {kind} repo"}, status=409)
    call.storage.create(kind, name, private=asked.get("visibility") == "private")
    return Answer(place)


def info(call: Call) -> Answer:
    repository = call.readable()
    commit = repository.resolve(call.words[2] or "main")
    siblings = [{"rfilename": path} for path in sorted(repository.trees[commit])]
    about = {"id": repository.name, "author": repository.owner, "sha": commit, "private": repository.private}
    return Answer({**about, "gated": False, "disabled": False, "tags": [], "siblings": siblings})


def tree(call: Call) -> Answer:
    """Files and folders under a path, a page at a time."""
    repository = call.readable()
    files = repository.trees[repository.resolve(call.words[2])]
    under = call.words[3].rstrip("/") + "/" if call.words[3] else ""
    nodes = _nodes(files, under, recursive=call.query.get("recursive", ["false"])[0].lower() == "true")
    if under and not nodes:
        raise RefusedError(404, f"{under} does not exist", code="EntryNotFound")
    start = int(call.query.get("cursor", ["0"])[0])
    page = nodes[start : start + NODES_PER_PAGE]
    headers = {}
    if start + len(page) < len(nodes):
        kept = "&".join(f"{name}={values[0]}" for name, values in call.query.items() if name != "cursor")
        place = f"{call.url}/api/{repository.kind}s/{repository.name}/tree/{call.words[2]}/{call.words[3]}"
        headers["Link"] = f'<{place.rstrip("/")}?{kept}&cursor={start + len(page)}>; rel="next"'
    return Answer(page, headers)


def _nodes(files: Tree, under: str, *, recursive: bool) -> list[dict]:
    inside = [path for path in sorted(files) if path.startswith(under)]
    folders = {under + "/".join(words[:depth]) for path in inside for words, depth in _parents(path[len(under) :])}
    if not recursive:
        folders = {folder for folder in folders if "/" not in folder[len(under) :]}
        inside = [path for path in inside if "/" not in path[len(under) :]]
    return [_folder_node(folder) for folder in sorted(folders)] + [files[path].node(path) for path in inside]


def _parents(path: str) -> list[tuple[list[str], int]]:
    words = path.split("/")
    return [(words, depth) for depth in range(1, len(words))]


def _folder_node(path: str) -> dict:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def paths_info(call: Call) -> Answer:
    repository = call.readable()
    files = repository.trees[repository.resolve(call.words[2])]
    is_json = "json" in call.headers.get("Content-Type", "")
    paths = call.json["paths"] if is_json else parse_qs(call.body.decode())["paths"]
    nodes = [files[path].node(path) for path in paths if path in files]
    folders = [path for path in paths if any(file.startswith(path.rstrip("/") + "/") for file in files)]
    return Answer(nodes + [_folder_node(path) for path in folders])


def validate_yaml(call: Call) -> Answer:
    problem = _card_problem(call.json["content"])
    return Answer({"errors": [{"message": problem}] if problem else [], "warnings": []}, status=400 if problem else 200)


def _card_problem(card: str) -> str | None:
    front_matter = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        metadata = yaml.safe_load(front_matter[1]) if front_matter else {}
    except yaml.YAMLError as error:
        return f"YAML metadata: {error}"
    if metadata.get("license") not in {None, *LICENSES}:
        return f'"license" must be one of {sorted(LICENSES)}'
    results = [result for model in metadata.get("model-index", []) for result in model["results"]]
    names = [*metadata.get("datasets", []), *(result["dataset"]["type"] for result in results)]
    values = [metric["value"] for result in results for metric in result["metrics"]]
    wrong = [repr(name) for name in names if not HUB_NAME.fullmatch(name)]
    wrong += [repr(value) for value in values if isinstance(value, float) and not math.isfinite(value)]
    return f"{wrong[0]} is not allowed" if wrong else None


def preupload(call: Call) -> Answer:
    """How each file is to be sent, and the hash of what the Hub has under its name."""
    repository = call.writable()
    files = repository.trees[repository.resolve(call.words[2])]
    asked = call.json["files"]
    if len(asked) > FILES_PER_PREUPLOAD:
        raise RefusedError(400, f"at most {FILES_PER_PREUPLOAD} files in a call")
    answers = []
    for file in asked:
        mode = "lfs" if is_large(file["path"], base64.b64decode(file["sample"]), file["size"]) else "regular"
        known = {"oid": files[file["path"]].etag} if file["path"] in files else {}
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
    return Answer({"files": answers})


def commit(call: Call) -> Answer:
    """Apply lines of JSON, the first with the title and perhaps the commit that must be the newest."""
    repository = call.writable()
    if call.words[2] != "main":
        raise RefusedError(404, f"Invalid rev id: {call.words[2]}", code="RevisionNotFound")
    (_, header), *operations = ((line["key"], line["value"]) for line in map(json.loads, call.body.splitlines()))
    if header.get("parentCommit") not in (None, repository.head):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repository.trees[repository.head])
    for kind, value in operations:
        _apply(call, files, kind, value)
    oid = repository.commit(files, header["summary"])
    return Answer({"success": True, "commitOid": oid, "commitUrl": f"{_page(call, repository)}/commit/{oid}"})


def _apply(call: Call, files: Tree, kind: str, value: dict) -> None:
    if kind == "file":
        files[value["path"]] = _regular(call, value)
    elif kind == "lfsFile":
        files[value["path"]] = _large(call, value)
    elif kind == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise RefusedError(404, "A file with this name doesn't exist", code="EntryNotFound")
    else:
        raise RefusedError(400, f"unknown operation {kind}")


def _regular(call: Call, value: dict) -> Entry:
    content = base64.b64decode(value["content"])
    problem = _card_problem(content.decode()) if value["path"] == "README.md" else None
    if problem:
        raise RefusedError(400, f"Invalid metadata in README.md: {problem}")
    return call.storage.store_regular(call.damage(content))


def _large(call: Call, value: dict) -> Entry:
    arrived = call.storage.blobs.get(value["oid"])
    if arrived is None and value["oid"] not in call.xet.hashes():
        raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
    if arrived is None:
        return large_entry(value["oid"], value["size"])
    return large_entry(hashlib.sha256(arrived).hexdigest(), len(arrived))


def _page(call: Call, repository: Repository) -> str:
    return f"{call.url}/{'' if repository.kind == 'model' else repository.kind + 's/'}{repository.name}"


API_ROUTES = [
    route("GET", "/api/whoami-v2", whoami),
    route("POST", "/api/repos/create", create),
    route("POST", "/api/validate-yaml", validate_yaml),
    route("GET", REPO + r"(?:/revision/([^/]+))?", info),
    route("GET", REPO + r"/tree/([^/]+)(?:/(.*))?", tree),
    route("POST", REPO + r"/paths-info/([^/]+)", paths_info),
    route("POST", REPO + r"/preupload/([^/]+)", preupload),
    route("POST", REPO + r"/commit/([^/]+)", commit),
]
