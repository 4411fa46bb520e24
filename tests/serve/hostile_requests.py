"""Requests as nobody should send them, made from a seed: spoiled bodies, broken bytes, odd heads, and hardly HTTP."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0}, "y": {"enum": ["a", None]}, "z": {"type": "array"}},
    "required": ["x"],
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": "F", "parameters": SCHEMA}}
HISTORY: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "2"},
]
CHATS: list[dict[str, Any]] = [
    {"model": "tiny", "messages": [USER], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    {"messages": HISTORY, "tools": [TOOL], "tool_choice": "required", "max_completion_tokens": 2, "seed": 1},
    {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}, "n": 2},
    {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"name": "j", "schema": SCHEMA}}},
    {"messages": [USER, {"role": "assistant", "content": "It", "partial": True}], "stop": ["a", "b"], "top_p": 0.9},
    {"messages": [USER], "logprobs": True, "top_logprobs": 2, "logit_bias": {"65": 5}, "presence_penalty": 1},
]
TEXTS: list[dict[str, Any]] = [
    {"model": "tiny", "prompt": "Hi", "max_tokens": 2, "echo": True, "logprobs": 1, "stream": True},
    {"prompt": [[1, 2, 3], [4]], "n": 2, "best_of": 2, "stop": "a", "temperature": 0.5, "top_k": 3, "min_p": 0.1},
]
RESPONSES: list[dict[str, Any]] = [
    {"model": "tiny", "input": "Hi", "instructions": "Be brief.", "stream": True, "metadata": {"a": "b"}},
    {
        "input": [
            USER,
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "2"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "tool_choice": "required",
        "text": {"format": {"type": "json_schema", "name": "j", "schema": SCHEMA}},
        "include": ["message.output_text.logprobs"],
    },
]
MESSAGES: list[dict[str, Any]] = [
    {"model": "tiny", "max_tokens": 2, "messages": [USER], "stream": True, "system": [{"type": "text", "text": "S"}]},
    {
        "model": "tiny",
        "max_tokens": 2,
        "messages": [
            USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "2"}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any"},
        "stop_sequences": ["a"],
        "metadata": {"user_id": "u"},
    },
]
COUNTS: list[dict[str, Any]] = [{name: body[name] for name in ("model", "messages")} for body in MESSAGES]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": CHATS,
    "/v1/completions": TEXTS,
    "/v1/responses": RESPONSES,
    "/v1/tokenizers/estimate-token-count": CHATS,
    "/v1/messages": MESSAGES,
    "/anthropic/v1/messages": MESSAGES,
    "/anthropic/v1/messages/count_tokens": COUNTS,
}
UPLOAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfile-extract\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nsome text\r\n--b--\r\n'
)
PATHS = ("/", "//v1//models", "/v1/models/tiny", "/v1/models/%2e%2e", "/v1/files", "/v1/files/x/content", "/health")
ODD_PATHS = ("/v1/chat/completions/", "/v1/messages/", "/anthropic", "/anthropic/", "/anthropic/v1/models/\x00", "/💥")
METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW")
TYPES = (
    b"",
    b"text/plain",
    b"application/xml",
    b"multipart/form-data",
    b"application/json; charset=latin-1",
    b"\xff/\x00",
)
WRITTEN_OUT = {
    "<many digits>": "9" * 5_000,
    **{f"<{depth} lists>": "[" * depth + "1" + "]" * depth for depth in (50, 400, 3_000)},
    **{f"<{depth} objects>": '{"properties":' * depth + "1" + "}" * depth for depth in (50, 400, 3_000)},
}
"""What Python itself refuses to make or write, and what stands for it until the body is written."""


@dataclass(kw_only=True)
class HostileRequest:
    """What a client sends, on a connection that others may use afterwards."""

    method: str = "POST"
    path: str
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])
    body: bytes
    leaves_early: bool = False
    """Whether the client is gone before its body is whole."""
    chunked: bool = False
    """Whether the body's length is not declared."""
    is_http: bool = True
    """Whether a parser of HTTP can read its head."""

    def wire(self) -> bytes:
        """The request's bytes; of one that leaves early, those that are sent."""
        target = quote(self.path, safe="/%").encode() + (b"?" + self.query if self.query else b"")
        headers = [(b"host", b"localhost"), *self.headers]
        body = self.body
        if self.chunked:
            headers.append((b"transfer-encoding", b"chunked"))
            pieces = [body[start : start + 1_000] for start in range(0, len(body), 1_000)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        elif b"content-length" not in dict(self.headers):
            headers.append((b"content-length", b"%d" % len(body)))
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        sent = body[: len(body) // 2] if self.leaves_early else body
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (self.method.encode(), target, head, sent)


@dataclass(kw_only=True)
class BrokenExchange:
    """What goes over a connection of its own."""

    path: str
    sent: bytes
    is_answered: bool
    """Whether a server can know that nothing good will come; otherwise the client just leaves."""


def hostile_requests(seed: int) -> Iterator[HostileRequest]:
    """Endless, the same for one seed."""
    random = Random(seed)
    kinds: list[Callable[[Random], HostileRequest]] = [_mutated, _broken, _odd_head, _upload]
    while True:
        request = random.choices(kinds, weights=(70, 15, 10, 5))[0](random)
        request.chunked = not request.leaves_early and len(request.headers) == 1 and random.random() < 0.1
        yield request


# ---- valid bodies with something wrong ---------------------------------------------------------------------------


def _valid(random: Random) -> tuple[str, dict[str, Any]]:
    path = random.choice(list(BODIES))
    return path, copy.deepcopy(random.choice(BODIES[path]))


def _mutated(random: Random) -> HostileRequest:
    path, body = _valid(random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _spoil(random, body)
    text = json.dumps(body)
    for name, meant in WRITTEN_OUT.items():
        text = text.replace(json.dumps(name), meant)
    return HostileRequest(path=path, body=text.encode())


def _spoil(random: Random, body: dict[str, Any]) -> None:
    """Replace, remove, rename, repeat or add at a random place."""
    places = list(_places(body))
    if not places:  # nothing is left to spoil
        return
    container, key = random.choice(places)
    match random.randrange(8):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[random.choice(("", "Model", "\ud800", "x" * 5_000, "n", "type"))] = container.pop(key)
        case 2 if isinstance(container, list):
            container.extend([container[key]] * random.choice((1, 5, 200)))
        case 3 if isinstance(container, dict):
            container[random.choice(("foo", "functions", "thread", "$ref", "type", "role", "name"))] = _odd(random)
        case _:
            container[key] = _odd(random)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _odd(random: Random) -> Any:
    """A value that hardly belongs anywhere."""
    simple: list[Any] = [None, True, False, 0, -1, 1, 3.0, 0.5, -0.0, 2**31, 2**63, -(2**64), 10**400, 1e308, 5e-324]
    simple += [float("nan"), float("inf"), float("-inf")]
    texts = ["", " ", "\x00", "\ud800", "\udfff\ud800", "💥", "x" * 20_000, "a\r\nb: c", "%s{0}", "../../etc/passwd"]
    texts += ["auto", "function", "object", "<|im_end|>", "(a+)+$", "^(?=x)", "data:image/png;base64,AA=="]
    if random.random() < 0.7:
        return random.choice([*simple, *texts])
    return random.choice((
        {},
        [],
        [[]],
        [{}],
        [None] * 200,
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": ["string", "null"], "pattern": "(a|aa)+$", "format": "uri", "maxLength": 10**9},
        {"anyOf": [{"type": "integer"}, {"not": {}}], "minProperties": 7},
        {"role": "user", "content": "x"},
        {str(number): number for number in range(300)},
        *WRITTEN_OUT,
    ))  # fmt: skip


# ---- broken bytes ------------------------------------------------------------------------------------------------


def _broken(random: Random) -> HostileRequest:
    path, valid = _valid(random)
    body = json.dumps(valid, ensure_ascii=False).encode()
    match random.randrange(7):
        case 0:
            body = random.randbytes(random.choice((0, 1, 10, 1_000, 50_000)))
        case 1:
            body = body[: random.randrange(len(body))]
        case 2:
            place = random.randrange(len(body))
            body = body[:place] + random.randbytes(1) + body[place + 1 :]
        case 3:
            body = body.decode().encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "cp037")))
        case 4:
            depth = random.choice((500, 20_000, 200_000))
            body = random.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"messages":' * depth))
        case 5:
            body = body + random.choice((b"]", b"\x00", b"{}", b"NaN", b"\xff"))
        case _:
            body = random.choice((b"null", b"[]", b'""', b"1e999", b'{"a":1,"a":2}', b"\xed\xa0\x80", b'"\\ud800"'))
    return HostileRequest(path=path, body=body, leaves_early=random.random() < 0.1)


def _upload(random: Random) -> HostileRequest:
    body = bytearray(UPLOAD)
    for _ in range(random.randrange(4)):
        body[random.randrange(len(body))] = random.randrange(256)
    if random.random() < 0.3:
        del body[random.randrange(len(body)) :]
    boundary = random.choice((b"b", b"b", b"b", b"", b"\xff", b"c" * 300))
    headers = [(b"content-type", b"multipart/form-data; boundary=" + boundary)]
    return HostileRequest(path="/v1/files", headers=headers, body=bytes(body), leaves_early=random.random() < 0.1)


# ---- odd heads ---------------------------------------------------------------------------------------------------


def _odd_head(random: Random) -> HostileRequest:
    path, valid = _valid(random)
    request = HostileRequest(path=path, body=json.dumps(valid).encode())
    match random.randrange(5):
        case 0:
            request.method = random.choice(METHODS)
        case 1:
            request.path = random.choice((*PATHS, *ODD_PATHS))
            request.method = random.choice(("POST", *METHODS))
        case 2:
            request.headers = [(b"content-type", random.choice(TYPES))]
            request.is_http = b"\x00" not in request.headers[0][1]
        case 3:
            request.headers += random.choice((
                [(b"content-length", b"9" * 20)],
                [(b"content-encoding", b"gzip"), (b"transfer-encoding", b"chunked, chunked")],
                [(b"x-request-id", b"\xff" * 40), (b"authorization", b"Bearer \xff")],
                [(b"content-type", b"text/html"), (b"accept", b"image/*;q=x"), (b"cookie", b"=;;=" * 100)],
                [(b"range", b"bytes=5-1"), (b"expect", b"100-continue"), (b"origin", b"null")],
                [(b"x-%d" % i, b"y" * 200) for i in range(100)],
            ))  # fmt: skip
            request.is_http = (b"transfer-encoding", b"chunked, chunked") not in request.headers
        case _:
            request.query = random.choice((b"limit=-1", b"limit=" + b"9" * 5_000, b"after=%00", b"%ff=%ff", b"&" * 500))
            request.path = random.choice(("/v1/files", "/anthropic/v1/models", "/v1/chat/completions"))
            request.method = random.choice(("GET", "POST"))
    return request


# ---- hardly HTTP -------------------------------------------------------------------------------------------------

REQUEST_LINES = (
    b"",
    b"POST",
    b"POST /v1/completions",
    b"POST /v1/completions HTTP/9.9",
    b"POST /v1/completions http/1.1",
    b"POST  /v1/completions  HTTP/1.1",
    b"POST\t/v1/completions\tHTTP/1.1",
    b"POST /v1/completions\x00 HTTP/1.1",
    b"P(ST /v1/completions HTTP/1.1",
    b"\xff\xfe /v1/completions HTTP/1.1",
    "POST /💥 HTTP/1.1".encode(),
    b"PRI * HTTP/2.0",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1",
)
HEADERS = (
    b"",
    b"host: a\r\nhost: b",
    b"host: a\r\nno colon",
    b"host: a\r\nspace : before",
    b"host: a\r\n folded: first",
    b"host: a\r\nx: \x00",
    b"host: a\r\n: nameless",
    b"host: a\r\ncontent-length: -1",
    b"host: a\r\ncontent-length: 1e3",
    b"host: a\r\ncontent-length: 1\r\ncontent-length: 2",
    b"host: a\r\ncontent-length: " + b"9" * 40,
    b"host: a\r\ntransfer-encoding: gzip",
    b"host: a\r\ntransfer-encoding: chunked, chunked",
    b"host: a\r\n" + b"\r\n".join(b"x-%d: y" % i for i in range(5_000)),
    b"host: a\r\nx: " + b"y" * 60_000,
)
CHUNKS = (
    b"zz\r\n{}\r\n0\r\n\r\n",
    b"-1\r\n{}\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"f" * 30 + b"\r\n{}",
    b"2\r\n{}}}0\r\n\r\n",
    b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"2;" + b"x" * 40_000 + b"\r\n{}\r\n0\r\n\r\n",
)
"""Bodies that say they come in chunks, and cannot be read."""


def broken_exchanges(seed: int) -> Iterator[BrokenExchange]:
    """Endless, the same for one seed."""
    random = Random(seed)
    while True:
        path, valid = _valid(random)
        body = json.dumps(valid).encode()
        line, kind = b"POST %b HTTP/1.1\r\n" % path.encode(), b"host: a\r\ncontent-type: application/json\r\n"
        match random.randrange(5):
            case 0:
                path, sent, is_answered = "/", random.choice(REQUEST_LINES) + b"\r\nhost: a\r\n\r\n", True
            case 1:
                sent, is_answered = line + random.choice(HEADERS) + b"\r\n\r\n", True
            case 2:
                media_type = kind if random.random() < 0.7 else b"host: a\r\n"
                sent = line + media_type + b"transfer-encoding: chunked\r\n\r\n" + random.choice(CHUNKS)
                is_answered = True
            case 3:  # the body is shorter than it says, or longer, whose rest is a request of its own
                length = len(body) + random.choice((1, 1_000, 10_000_000, -1, -20))
                sent = line + kind + b"content-length: %d\r\n\r\n%b" % (length, body)
                is_answered = length < len(body)
            case _:
                whole = HostileRequest(path=path, body=body).wire()
                sent, is_answered = whole[: random.randrange(len(whole))], False
        yield BrokenExchange(path=path, sent=sent, is_answered=is_answered)
