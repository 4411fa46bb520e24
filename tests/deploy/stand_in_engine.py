"""An engine for tests: a real HTTP server that is started by an engine's real command line.

    stand_in_engine.py RECORD MODE serve MODEL --port PORT …

It writes its command line to RECORD, starts a worker, refuses twice as an engine that loads weights does, then answers.
MODE is "serves", "dies" (before it answers), "dies-later" (once it has answered a request) or "never" (answers).
"""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """OpenAI's API in as far as a gateway asks for it."""

    refusals = 2
    mode = "serves"

    def do_GET(self) -> None:
        if self.path == "/health":
            if Handler.refusals or Handler.mode == "never":
                Handler.refusals = max(0, Handler.refusals - 1)
                self.answer(503, {"status": "loading"})
            else:
                self.answer(200, {})
        else:
            self.answer(200, {"object": "list", "data": [{"id": "moonlight-16b-a3b", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if Handler.mode == "dies-later":
            print("CUDA error: an illegal memory access was encountered", flush=True)
            # Not sys.exit, which would end this thread only.
            self.server.shutdown()
            return
        message = {"role": "assistant", "content": "a stand-in"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "moonlight-16b-a3b"}
        self.answer(200, {**answer, "choices": [choice], "usage": usage})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        print("request:", format % args, flush=True)


def main() -> None:
    record, mode, *words = sys.argv[1:]
    worker = subprocess.Popen(["sleep", "600"])
    Path(record).write_text(json.dumps({"words": words, "worker": worker.pid}), encoding="utf-8")
    print("loading weights", flush=True)
    if mode == "dies":
        print("torch.OutOfMemoryError: CUDA out of memory", flush=True)
        sys.exit(3)
    Handler.mode = mode
    host, port = words[words.index("--host") + 1], int(words[words.index("--port") + 1])
    with ThreadingHTTPServer((host, port), Handler) as server:
        server.serve_forever(poll_interval=0.05)
    sys.exit(4)


if __name__ == "__main__":
    main()
