"""A stand-in for the Hugging Face Hub on the loopback interface: what its client calls to publish and to fetch models.

Paths, headers and bodies are those that ``huggingface_hub`` sends and reads; the client itself is the real one.
"""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKENS = {"owner": {"user"}, "reader": set()}
"""Tokens, and the names under which they may write."""


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit to files
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags to commits

    def commit(self, changes: dict[str, bytes]) -> str:
        """Add files to the main branch; the commit."""
        files = {**self.commits.get(self.refs.get("main", ""), {}), **changes}
        key = hashlib.sha1(repr((self.refs.get("main"), sorted(files.items()))).encode()).hexdigest()
        self.commits[key], self.refs["main"] = files, key
        return key


class Hub(ThreadingHTTPServer):
    """The server: its repositories, uploaded objects and a log of requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for method, pattern, answer in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups())
        return self.answer(404, {"error": f"no route {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def answer(self, status: int, content: dict | bytes, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message or code)

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def may_write(self, repo: str) -> bool:
        if self.token not in TOKENS:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo.split("/")[0] not in TOKENS[self.token]:
            self.refuse(403, "", f"You don't have the rights to create a model under {repo}")
        else:
            return True
        return False

    def create(self) -> None:
        payload = json.loads(self.body)
        repo = f"{payload['organization']}/{payload['name']}"
        if self.may_write(repo):
            known = repo in self.server.repositories
            private = payload.get("visibility") == "private" or payload.get("private", False)
            self.server.repositories.setdefault(repo, Repository(private))
            self.answer(409 if known else 200, {"url": f"{self.server.url}/{repo}", "id": repo})

    def validate(self) -> None:
        header = json.loads(self.body)["content"].split("---\n")[1]
        self.answer(200, {"errors": [], "warnings": [] if header else [{"message": "no metadata"}]})

    def preupload(self, repo: str, revision: str) -> None:
        if self.may_write(repo):
            names = [file["path"] for file in json.loads(self.body)["files"]]
            mode = {True: "lfs", False: "regular"}
            files = [{"path": n, "shouldIgnore": False, "uploadMode": mode[n.endswith(".safetensors")]} for n in names]
            self.answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        if self.may_write(repo):
            objects = json.loads(self.body)["objects"]
            for item in objects:
                if item["oid"] not in self.server.objects:
                    item["actions"] = {"upload": {"href": f"{self.server.url}/objects/{item['oid']}"}}
            self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.answer(200, b"")

    def commit(self, repo: str, branch: str) -> None:
        if not self.may_write(repo):
            return
        changes = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                changes[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                changes[item["value"]["path"]] = self.server.objects[item["value"]["oid"]]
        key = self.server.repositories[repo].commit(changes)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{key}", "commitOid": key})

    def info(self, repo: str, revision: str | None = None) -> None:
        if self.may_write(repo):
            repository = self.server.repositories[repo]
            key = repository.refs.get(revision or "main")
            files = [{"rfilename": name} for name in repository.commits.get(key or "", {})]
            self.answer(200, {"id": repo, "sha": key, "private": repository.private, "siblings": files, "tags": []})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        repository = self.server.repositories.get(repo)
        if repository is None or (repository.private and self.token not in TOKENS):
            # as the Hub does: who is not known is not told whether there is something
            return (
                self.refuse(404, "RepoNotFound") if self.token in TOKENS else self.refuse(401, "", "Invalid username")
            )
        key = repository.refs.get(revision, revision)
        if key not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        content = repository.commits[key].get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=key)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", Handler.batch),
    ("GET", f"/api/models/{REPO}(?:/revision/([^/]+))?", Handler.info),
    ("PUT", "/objects/([0-9a-f]+)", Handler.upload),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", Handler.commit),
    (("GET", "HEAD"), f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)


def fresh_client() -> None:
    """Forget the client: it reads its environment when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


def variables(url: str, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
    """The client's environment: which Hub, where its cache is, who it is; no Xet, whose protocol is another."""
    found = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**found, **({"HF_TOKEN": token} if token else {}), **more}


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
