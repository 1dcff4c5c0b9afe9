"""A Hugging Face Hub on localhost: repositories are folders, with the few routes that downloads need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `root/owner/name/…` as repositories; `requests` lists what was asked for."""

    def __init__(self, root: Path, *, token: str | None = None) -> None:
        self.root = root
        self.token = token
        """If set, every repository is private and opens to this token only."""
        self.requests: list[str] = []
        self.endpoint = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def run(self, script: str, *args: Any, home: Path, env: dict[str, str] | None = None) -> Any:
        """The JSON that a Python script prints last, in a process of its own that knows this hub only: huggingface_hub
        reads its environment when it is imported.

        Args:
          args: for the script, as JSON each.
          home: HF_HOME, where downloads are kept.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", script, *map(json.dumps, args)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment | (env or {}),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append(path)
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        folder = self.root / repo
        refused = self.token and handler.headers.get("Authorization") != f"Bearer {self.token}"
        if refused or not folder.is_dir():
            self._send(handler, 401 if self.token else 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            return
        revision = parts[5] if is_api and len(parts) > 5 else parts[3] if len(parts) > 3 and not is_api else "main"
        if revision not in ("main", COMMIT):
            self._send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if is_api and "tree" in parts:
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name in files
            ]
            self._send(handler, 200, json.dumps(listing).encode(), {}, body=body)
        elif is_api:
            info = {
                "id": repo,
                "modelId": repo,
                "sha": COMMIT,
                "private": False,
                "siblings": [{"rfilename": n} for n in files],
            }
            self._send(handler, 200, json.dumps(info).encode(), {}, body=body)
        else:
            name = "/".join(parts[4:])
            if name not in files:
                self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
                return
            content = (folder / name).read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            self._send(handler, 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body=body)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], *, body: bool
    ) -> None:
        handler.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if body:
            handler.wfile.write(content)
