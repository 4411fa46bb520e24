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

MODEL = "moonlight-16b-a3b"


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
            self.answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 8192}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if Handler.mode == "dies-later":
            print("CUDA error: an illegal memory access was encountered", flush=True)
            # Not sys.exit, which would end this thread only.
            self.server.shutdown()
            return
        answer = {"id": "x", "created": 1, "model": MODEL}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        if not request.get("stream"):
            message = {"role": "assistant", "content": "a stand-in"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {**answer, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        delta = {"role": "assistant", "content": "a stand-in"}
        choices: tuple[list[dict[str, Any]], ...] = (
            [{"index": 0, "delta": delta, "finish_reason": None}],
            [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            [],
        )
        for chosen in choices:
            chunk = {**answer, "object": "chat.completion.chunk", "choices": chosen, "usage": None if chosen else usage}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

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
