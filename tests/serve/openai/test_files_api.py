"""Files as the official SDK sees them, over a real socket."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.serve.conftest import Serve
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend


@pytest.fixture
def server(serve: Serve) -> LiveServer:
    return serve(ScriptedBackend.saying("Hi"), max_file_bytes=100_000)


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_file_comes_back_as_it_was_until_it_is_deleted(client: openai.OpenAI) -> None:
    content = bytes(range(256)) * 100
    file = client.files.create(file=("../../etc/passwd", content), purpose="user_data")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "../../etc/passwd", "user_data")
    assert client.files.retrieve(file.id) == file
    response = client.files.content(file.id)
    assert response.read() == content
    assert response.response.headers["x-content-type-options"] == "nosniff"
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="no file has the id"):
            gone(file.id)
    assert list(client.files.list()) == []


def test_lists_are_paged_ordered_and_chosen_by_purpose(client: openai.OpenAI) -> None:
    made = {client.files.create(file=(f"{i}.txt", b"x"), purpose="batch").id for i in range(3)}
    other = client.files.create(file=("o.txt", b"x"), purpose="vision").id
    newest_first = [file.id for file in client.files.list()]
    assert set(newest_first) == {*made, other}
    assert [file.id for file in client.files.list(order="asc")] == newest_first[::-1]
    assert {file.id for file in client.files.list(purpose="batch")} == made
    page = client.files.list(limit=3)
    assert ([file.id for file in page.data], page.has_more) == (newest_first[:3], True)
    assert [file.id for file in client.files.list(after=newest_first[2])] == newest_first[3:]
    # The SDK's own paging, page by page.
    assert [file.id for file in client.files.list(limit=1)] == newest_first


@pytest.mark.parametrize("name", ["notes.md", "data.json", "code.py", "empty.txt"])
def test_the_text_of_text_files_is_extracted(server: LiveServer, client: openai.OpenAI, name: str) -> None:
    text = "" if name == "empty.txt" else "高さ 8,611 m\n"
    file = client.files.create(file=(name, text.encode()), purpose="file-extract")  # pyright: ignore
    assert client.files.content(file.id).text == text
    response = httpx.get(f"{server.url}/v1/files/{file.id}/content")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7 text", b"\x89PNG\r\n\x1a\n\x00", b"\xff\xfe\x00", b"a\0b", b"{\\rtf1 x}"]
)
def test_nothing_else_is_extracted(client: openai.OpenAI, content: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'paper.pdf' is not UTF-8 text; file-extract reads text files"):
        client.files.create(file=("paper.pdf", content), purpose="file-extract")  # pyright: ignore
    assert list(client.files.list()) == []


@pytest.mark.parametrize("num_bytes", [100_001, 5_000_000])
def test_files_past_the_limit_are_refused_and_not_kept(client: openai.OpenAI, num_bytes: int) -> None:
    assert client.files.create(file=("fits", b"x" * 100_000), purpose="batch").bytes == 100_000
    with pytest.raises(openai.APIStatusError, match=r"larger than 0\.\d+ MB") as caught:
        client.files.create(file=("large", b"x" * num_bytes), purpose="batch")
    assert caught.value.status_code == 413
    assert [file.filename for file in client.files.list()] == ["fits"]


def test_uploads_that_are_none(server: LiveServer) -> None:
    url = f"{server.url}/v1/files"
    file = {"file": ("a.txt", b"x")}
    refused = [
        (httpx.post(url, files=file), "purpose"),
        (httpx.post(url, files=file, data={"purpose": "fun"}), "purpose"),
        (httpx.post(url, data={"purpose": "batch"}), "file"),
        (httpx.post(url, json={"purpose": "batch"}), "file"),
        (httpx.get(url, params={"limit": 0}), "limit"),
    ]
    for response, param in refused:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    broken = httpx.post(url, content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 400


@pytest.mark.parametrize(
    "file_id", ["..%2F..%2Fetc%2Fpasswd", "file-..", "file-" + "0" * 32, "%00", "FILE-" + "a" * 32]
)
def test_ids_lead_nowhere_else(server_for_module: LiveServer, file_id: str) -> None:
    for suffix in ("", "/content"):
        assert httpx.get(f"{server_for_module.url}/v1/files/{file_id}{suffix}").status_code == 404
    assert httpx.delete(f"{server_for_module.url}/v1/files/{file_id}").status_code == 404
