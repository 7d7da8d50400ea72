"""A model hub on localhost: the few endpoints that `huggingface_hub` calls, over folders of files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


def commit_of(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


class Hub:
    """`repositories`: id -> branch -> folder."""

    def __init__(self, repositories: dict[str, dict[str, Path]], gated: frozenset[str] = frozenset()) -> None:
        self.repositories, self.gated = repositories, gated
        self.served: list[str] = []  # files whose content was asked for

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api, _, rest = path.partition("/api/models/")
        if rest:
            repo = "/".join(rest.split("/")[:2])
            kind, _, revision = rest.removeprefix(repo).strip("/").partition("/")
        else:
            repo = "/".join(api.strip("/").split("/")[:2])
            kind, _, revision = api.removeprefix(f"/{repo}/").partition("/")
        if repo not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        branches = self.repositories[repo]
        if kind == "refs":
            listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": commit_of(f)} for b, f in branches.items()]
            return as_json({"branches": listed, "converts": [], "tags": []})
        revision, _, file = revision.partition("/") if kind == "resolve" else (revision, "", "")
        folder = branches.get(revision or "main") or {commit_of(f): f for f in branches.values()}.get(revision)
        if folder is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if kind == "tree":
            return as_json(
                [
                    {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": etag(folder / n)}
                    for n in names
                ]
            )
        if kind in ("", "revision"):
            return as_json({"id": repo, "sha": commit_of(folder), "siblings": [{"rfilename": n} for n in names]})
        if file not in names:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.served.append(file)
        headers = {"ETag": f'"{etag(folder / file)}"', "X-Repo-Commit": commit_of(folder)}
        return 200, headers, (folder / file).read_bytes()


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def as_json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of the hub while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
