"""A server that plays the hub that models come from, for ``HF_ENDPOINT``: it has the bundled model, under any name."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from kvvideo.session.hub import named

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 16


class Hub(ThreadingHTTPServer):
    """Serves until it is left.

    Attributes:
        asked: method, path and ``Range`` of each request, in order.
        stop_at: bytes of the weights that a response gives out before it waits; None for all.
        silent: whether it answers nothing at all.
        refusals: status and ``X-Error-Code`` for each name that is refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {path.name: path for path in Path(named("tiny")).iterdir()}
        self.asked: list[tuple[str, str, str | None]] = []
        self.stop_at: int | None = None
        self.silent = False
        self.leaving = threading.Event()
        self.refusals: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        pass  # clients are killed


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path, self.headers["Range"]))
        if self.server.silent:
            self.server.leaving.wait()
        api, resolve = "/api/models/", "/resolve/main/"
        name = path.removeprefix(api) if path.startswith(api) else path[1:].partition(resolve)[0]
        if (refusal := self.server.refusals.get(name)) is not None:
            self._say(refusal[0], {"X-Error-Code": refusal[1]}, b"")
        elif path.startswith(api):
            siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in self.server.files.items()]
            self._say(200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        elif (file := self.server.files.get(path.partition(resolve)[2])) is None:
            self._say(404, {}, b"")
        else:
            data = file.read_bytes()
            told = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            first = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if first:
                told["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._say(206 if first else 200, told, data[first:], path.endswith(".safetensors"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _say(self, status: int, told: dict[str, str], body: bytes, large: bool = False) -> None:
        self.send_response(status)
        for name, value in {**told, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = self.server.stop_at if large else None
        self.wfile.write(body[:stop])
        if stop is not None:
            self.server.leaving.wait()

    def log_message(self, *_: object) -> None:
        pass
