"""A server that only has the page and answers what a test tells it to, chunk by chunk."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import neuralchat_lite

PAGE = Path(neuralchat_lite.__file__).parent / "server/page"
MODEL = "little"

Chunk = dict[str, Any]
Answer = Callable[[Chunk], Iterable[Chunk]]


def delta(**fields: Any) -> Chunk:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def written(text: str, size: int = 7, finish: str = "stop") -> Iterator[Chunk]:
    """An answer in pieces of `size` characters, as the real server sends it."""
    yield delta(role="assistant", content=None)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for piece in pieces:
        yield delta(content=piece)
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": len(pieces),
        "total_tokens": 10 + len(pieces),
    }
    yield {"choices": [], "usage": usage, "timings": {"tokens_per_second": 12.5}}


class Refused(Exception):
    """What `answer` raises for an answer of another status."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        self.status, self.message, self.headers = status, message, headers


class Stub:
    """What tests set and read: `answer`, `key`, `requests`, `left`."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: written("Hello.")
        self.key: str | None = None
        self.requests: list[Chunk] = []
        self.left = threading.Event()  # a client hung up amid an answer
        self.address = ""


def handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    from neuralchat_lite.server.page import POLICY, TYPES

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def reply(self, status: int, kind: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, refused: Refused) -> None:
            body = json.dumps({"error": {"message": refused.message, "type": "x"}}).encode()
            self.reply(refused.status, "application/json", body, **refused.headers)

        def allowed(self) -> bool:
            if stub.key is None or self.headers["Authorization"] == f"Bearer {stub.key}":
                return True
            self.refuse(Refused(401, "This server wants an API key."))
            return False

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                if self.allowed():
                    data = {"data": [{"id": MODEL, "max_model_len": 200}, {"id": "other"}]}
                    self.reply(200, "application/json", json.dumps(data).encode())
                return
            name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
            file = PAGE / name
            if not file.is_file():
                return self.reply(404, "text/plain", b"")
            kind = TYPES[file.suffix]
            self.reply(200, kind, file.read_bytes(), Content_Security_Policy=POLICY)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            stub.requests.append(body)
            try:
                chunks = stub.answer(body)
            except Refused as refused:
                return self.refuse(refused)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                self.wfile.write(b": ping\n\n")
                for chunk in chunks:
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                    if "error" in chunk:
                        return
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                stub.left.set()

    return Handler


@contextmanager
def stub_server() -> Iterator[Stub]:
    stub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(stub))
    server.daemon_threads = True
    stub.address = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
