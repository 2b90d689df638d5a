"""A local server for the calls that a download from the Hugging Face Hub makes.

Files are requested by HEAD and GET of `/ORG/NAME/resolve/REVISION/FILE`. Missing ones are reported
in the header `X-Error-Code`, as the Hub does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "hf_secret"


@dataclass
class FakeHub:
    """A hub with one repository.

    Attributes:
        repository: name of the repository, ORG/NAME.
        commits: files of each commit, contents by path.
        refs: commits of branches and tags, by name.
        private: whether requests need the token `TOKEN`.
        url: address of the server, for `HF_ENDPOINT`.
        asked: method and path of every request so far.
    """

    repository: str
    commits: Mapping[str, Mapping[str, bytes]]
    refs: Mapping[str, str]
    private: bool = False
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def got(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for how, path in self.asked
            if how == "GET"
        ]

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response to a path."""
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        revision = unquote(revision)
        if repository != self.repository or (self.private and token != f"Bearer {TOKEN}"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if (content := self.commits[commit].get(unquote(file))) is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return 200, headers, content


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on the loopback interface until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.asked.append((self.command, self.path))
            status, headers, body = hub.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """Files of a folder in the form of a commit: contents by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
