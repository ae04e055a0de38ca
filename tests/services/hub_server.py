"""A model hub on this machine: of its HTTP interface what downloads by its own client need."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Server(ThreadingHTTPServer):
    root: Path
    sent: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        asks_api = parts[:2] == ["api", "models"]
        owner, name, *asked = parts[2:] if asks_api else parts
        folder = self.server.root / owner / name
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif asks_api and asked[:1] == ["tree"]:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            self._send_json([_entry(folder, path) for path in files])
        elif asks_api:
            self._send_json({"id": f"{owner}/{name}", "sha": _COMMIT, "siblings": []})
        else:
            file = "/".join(asked[2:])  # behind `resolve` and the commit
            content = (folder / file).read_bytes()
            self.server.sent += [file] * (self.command == "GET")
            self._send(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": _COMMIT})

    do_HEAD = do_GET

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is for its failures."""


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def model_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves the repositories `root`/owner/name while it is open: its address, and the files that
    it has sent so far."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.root, server.sent = root, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
