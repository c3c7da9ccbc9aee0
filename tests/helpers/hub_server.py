"""A Hub on this machine, of the routes that pushing and loading need, for the real `huggingface_hub`
client."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other"}


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        self.status, self.message, self.code = status, message, code
        self.body = body or {"error": message}


@dataclass
class Repo:
    """A repository: each commit is a whole tree, and a branch or tag points at one."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{message}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        tokens: what each token may do, "write" or "read".
        repos: by name.
        stored: large files that were uploaded, by SHA-256.
        requests: method and path of everything that was asked.
        failures: how often the next requests of a method and path pattern fail, each by a lost connection.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens: dict[str, str] = {}
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: dict[str, int] = {}

    def handle_error(self, request, client_address) -> None:
        pass  # a client that left

    def must_fail(self, line: str) -> bool:
        for pattern, times in self.failures.items():
            if times and re.search(pattern, line):
                self.failures[pattern] -= 1
                return True
        return False


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.server.requests.append(line)
        if self.server.must_fail(line):
            # Half of it was read when the connection went away.
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    handle(self, *match.groups())
                    return
            raise Refusal(404, f"no route {line}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.body, headers, refusal.status)

    def send(self, content: dict | list | bytes, headers: dict[str, str] | None = None, status: int = 200):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def right(self) -> str | None:
        """What the caller's token allows; None without one."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.server.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.server.tokens[token]

    def must_write(self) -> None:
        if self.right() is None:
            raise Refusal(401, "Invalid username or password.")
        if self.right() != "write":
            raise Refusal(403, "You don't have the required permissions: the token is for reading only.")

    def repo(self, name: str) -> Repo:
        right = self.right()
        repo = self.server.repos.get(name)
        # The Hub does not tell strangers which private repositories there are.
        if repo is None or (repo.private and right is None):
            raise Refusal(401 if right is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def create(self) -> None:
        self.must_write()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repos:
            raise Refusal(
                409, "You already created this model repo", body={"url": f"{self.server.url}/{name}"}
            )
        self.server.repos[name] = Repo(asked.get("visibility") == "private")
        self.send({"url": f"{self.server.url}/{name}", "name": name})

    def whoami(self) -> None:
        self.must_write()
        self.send({"name": "me", "type": "user", "orgs": []})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [{"message": message} for message in card_errors(content)]
        if errors:
            raise Refusal(400, "Invalid metadata", body={"errors": errors, "warnings": []})
        self.send({"errors": [], "warnings": []})

    def branch(self, name: str, branch: str) -> None:
        self.must_write()
        repo = self.repo(name)
        if branch in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        self.send({})

    def preupload(self, name: str, revision: str) -> None:
        self.must_write()
        there = self.repo(name).commits[self.repo(name).find(revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": object_id(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send({"files": files})

    def batch(self, name: str) -> None:
        self.must_write()
        self.repo(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server.stored:
                item["actions"] = {
                    "upload": {"href": f"{self.server.url}/stored/{item['oid']}", "header": {}}
                }
            objects.append(item)
        self.send({"objects": objects, "transfer": "basic"})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is not what was announced")
        self.server.stored[oid] = self.body
        self.send({})

    def commit(self, name: str, branch: str) -> None:
        self.must_write()
        repo = self.repo(name)
        files = dict(repo.commits[repo.find(branch)])
        message = ""
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(branch, files, message)
        self.send({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.repo(name)
        oid = repo.find(revision or "main")
        files = [{"rfilename": path} for path in repo.commits[oid]]
        card = metadata(repo.commits[oid].get("README.md", b"").decode())
        self.send(
            {
                "id": name,
                "sha": oid,
                "private": repo.private,
                "siblings": files,
                "tags": [],
                "cardData": card,
            }
        )

    def tree(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        self.send(
            [
                {"type": "file", "path": path, "size": len(data), "oid": object_id(path, data)}
                for path, data in repo.commits[repo.find(revision)].items()
            ]
        )

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        oid = repo.find(revision)
        if path not in repo.commits[oid]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data = repo.commits[oid][path]
        etag = f'"{object_id(path, data)}"'
        headers = {"ETag": etag, "X-Repo-Commit": oid, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        self.send(data, headers)


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/stored/(.+)", Handler.store),
    ("GET", f"/api/(?:models|datasets)/{NAME}", Handler.info),
    ("GET", f"/api/models/{NAME}/revision/(.+)", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/([^/]+).*", Handler.tree),
    ("GET HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png", ".bin"))


def object_id(path: str, data: bytes) -> str:
    """As git names a file, and as the Hub names a large one."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def metadata(content: str) -> dict | None:
    """The YAML that a card begins with."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse in the metadata of a card."""
    data = metadata(content)
    if data is None:
        return ["empty or missing yaml metadata in repo card"]
    errors = []
    if data.get("license", "other") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ("base_model", "datasets"):
        for name in [data[key]] if isinstance(data.get(key), str) else data.get(key) or []:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                errors.append(f'"{key}" with value {name!r} is not valid')
    for entry in data.get("model-index") or []:
        if not entry.get("name"):
            errors.append('"model-index[0].name" is required')
        for result in entry.get("results") or []:
            if not result.get("task", {}).get("type"):
                errors.append('"model-index[0].results[0].task.type" is required')
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                errors.append('"model-index[0].results[0].dataset" needs name and type')
            for metric in result.get("metrics") or []:
                if not isinstance(metric.get("value"), int | float) or not metric.get("type"):
                    errors.append('"model-index[0].results[0].metrics" need type and value')
    return errors
