"""A model hub on localhost: the endpoints that `huggingface_hub` calls, over folders of files, with faults on demand.

As on the real one, weights are LFS files: named by their SHA-256 and reached through a redirect to another server, with
byte ranges; the rest is named by its git hash. Headers and JSON are those that the client reads.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import quote, unquote, urlsplit

MOST_REQUESTS = 5_000  # of one hub: a client that never gives up is stopped


def commit_of(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: int | None = None  # bytes of the body after which the connection drops; None: all


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests whose method and path match."""

    pattern: str
    spoil: Callable[[Answer], Answer]
    times: int = 1_000_000


def says(status: int, **headers: str) -> Callable[[Answer], Answer]:
    return lambda _: Answer(status, {name.replace("_", "-"): value for name, value in headers.items()})


def limits(remaining: int, seconds: int, status: int = 429) -> Callable[[Answer], Answer]:
    """As the Hub's own limits say how long: requests that are left, and seconds to the next window."""
    policy = {"ratelimit": f'"api";r={remaining};t={seconds}', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
    return lambda _: Answer(status, policy)


def drops(after: int) -> Callable[[Answer], Answer]:
    return lambda answer: Answer(answer.status, answer.headers, answer.body, sent=after)


def truncates(by: int) -> Callable[[Answer], Answer]:
    """A body that is short, and says so itself: no client can see it but by comparing with what was promised."""
    return lambda answer: Answer(answer.status, answer.headers, answer.body[:-by])


def corrupts(answer: Answer) -> Answer:
    """The right size, the wrong content."""
    return Answer(answer.status, answer.headers, answer.body[:-1] + bytes([answer.body[-1] ^ 1]))


class Hub:
    """`repositories`: id -> branch -> folder."""

    def __init__(
        self,
        repositories: dict[str, dict[str, Path]],
        gated: frozenset[str] = frozenset(),
        private: dict[str, str] | None = None,  # id -> the token that opens it
    ) -> None:
        self.repositories, self.gated, self.private = repositories, gated, private or {}
        self.past: dict[str, dict[str, Path]] = {}  # id -> commit -> folder; a branch that moves leaves its commits
        self.requests: list[str] = []  # method and path
        self.served: list[str] = []  # files whose content was asked for
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        self.tokens_elsewhere: set[str] = set()  # that the server of the weights was shown
        self.elsewhere = ""  # its address
        self.faults: list[Fault] = []
        self._lock = Lock()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        with self._lock:
            self.requests.append(f"{method} {path}")
            assert len(self.requests) < MOST_REQUESTS
            for name, branches in self.repositories.items():
                self.past.setdefault(name, {}).update({commit_of(folder): folder for folder in branches.values()})
            token = headers.get("authorization", "").removeprefix("Bearer ")
            (self.tokens_elsewhere if path.startswith("/cdn/") else self.tokens).update({token} - {""})
            answer = self._right_answer(method, path, token)
            if answer.status == 200 and (asked := headers.get("range")) and method == "GET":
                self.ranges.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                total = len(answer.body)
                answer.headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
                answer = Answer(206, answer.headers, answer.body[start:])
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, f"{method} {path}"):
                    fault.times -= 1
                    return fault.spoil(answer)
            return answer

    def _right_answer(self, method: str, path: str, token: str) -> Answer:
        if path.startswith("/cdn/"):
            folder, _, file = path.removeprefix("/cdn/").partition("/")
            (content,) = {(f / file).read_bytes() for b in self.past.values() for c, f in b.items() if c == folder}
            if method == "GET":
                self.served.append(file)
            return Answer(200, {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"}, content)
        api, _, rest = path.partition("/api/models/")
        if rest:
            repo = "/".join(rest.split("/")[:2])
            kind, _, revision = rest.removeprefix(repo).strip("/").partition("/")
        else:
            repo = "/".join(api.strip("/").split("/")[:2])
            kind, _, revision = api.removeprefix(f"/{repo}/").partition("/")
        if repo in self.private and token != self.private[repo]:
            message = "Invalid credentials in Authorization header" if token else "Repository not found"
            code = {} if token else {"X-Error-Code": "RepoNotFound"}
            return Answer(401, code | {"X-Error-Message": message})
        if repo not in self.repositories:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        if repo in self.gated:
            return Answer(403, {"X-Error-Code": "GatedRepo"})
        branches = self.repositories[repo]
        if kind == "refs":
            listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": commit_of(f)} for b, f in branches.items()]
            return as_json({"branches": listed, "converts": [], "tags": []})
        revision, _, file = revision.partition("/") if kind in ("resolve", "tree") else (revision, "", "")
        folder = branches.get(unquote(revision) or "main") or self.past[repo].get(revision)
        if folder is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if kind == "tree":
            return as_json([tree_entry(folder, name) for name in names])
        if kind in ("", "revision"):
            return as_json({"id": repo, "sha": commit_of(folder), "siblings": [{"rfilename": n} for n in names]})
        if file not in names:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_of(folder)})
        content = (folder / file).read_bytes()
        headers = {"X-Repo-Commit": commit_of(folder), "Accept-Ranges": "bytes"}
        if is_lfs(file):
            headers |= {"X-Linked-Etag": f'"{etag(folder / file)}"', "X-Linked-Size": str(len(content))}
            return Answer(302, headers | {"Location": f"{self.elsewhere}/cdn/{commit_of(folder)}/{quote(file)}"})
        if method == "GET":
            self.served.append(file)
        return Answer(200, headers | {"ETag": f'"{etag(folder / file)}"'}, content)


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def tree_entry(folder: Path, name: str) -> dict[str, object]:
    content = (folder / name).read_bytes()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if is_lfs(name):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest() if is_lfs(file.name) else git_hash(content)


def as_json(content: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of the hub while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            answer = hub.answer(self.command, unquote(urlsplit(self.path).path), asked)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body if answer.sent is None else answer.body[: answer.sent])
            self.close_connection = answer.sent is not None

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as hub.elsewhere, listening(Handler) as address:
        yield address


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True  # a client keeps its connections open
    server.block_on_close = False
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
