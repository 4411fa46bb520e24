"""`/v1/files`: upload, list, read and delete; with the purpose `file-extract`, the text of what was uploaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from chogori.serve.accounts.caller import caller_of
from chogori.serve.api_errors import ApiError
from chogori.serve.file_store import FileStore, StoredFile
from chogori.serve.openai.response_models import FileDeleted, FileList, FileObject, errors
from chogori.serve.settings import ServeSettings

Purpose = Literal["assistants", "batch", "evals", "file-extract", "fine-tune", "user_data", "vision"]
PIECE_BYTES = 1 << 20
FORMATS_THAT_LOOK_LIKE_TEXT = (b"%PDF-", b"{\\rtf")

router = APIRouter(tags=["files"])


@router.post("/v1/files", responses=errors(400, 413, 415, 500))
async def create_file(
    request: Request,
    file: Annotated[UploadFile, File(description="At most 100 MB.")],
    purpose: Annotated[Purpose, Form()],
) -> FileObject:
    """Store a file. With the purpose `file-extract` it must be text: txt, md, json, code."""
    settings: ServeSettings = request.app.state.settings

    def store() -> StoredFile:
        if purpose == "file-extract":
            _require_text(file.file, file.filename or "")
        return _files(request).add(
            _pieces(file.file),
            filename=file.filename or "",
            purpose=purpose,
            max_bytes=settings.max_file_bytes,
            owner=caller_of(request).owner,
        )

    return _file_object(await run_in_threadpool(store))


@router.get("/v1/files", responses=errors(400, 404))
async def list_files(
    request: Request,
    purpose: Purpose | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """Stored files, by default the newest first. `after` is the id of the last one that was seen."""
    files = await run_in_threadpool(_files(request).list, caller_of(request).owner)
    if order == "asc":
        files.reverse()
    if after is not None:
        ids = [file.id for file in files]
        if after not in ids:
            raise ApiError(f"no file has the id {after!r}", status=404, field="after", code="file_not_found")
        files = files[ids.index(after) + 1 :]
    files = [file for file in files if purpose is None or file.purpose == purpose]
    page = files[:limit]
    return FileList(
        data=[_file_object(file) for file in page],
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(files) > len(page),
    )


@router.get("/v1/files/{file_id}", responses=errors(404))
async def retrieve_file(request: Request, file_id: str) -> FileObject:
    """What is known of a file."""
    return _file_object(await run_in_threadpool(_files(request).get, file_id, caller_of(request).owner))


@router.delete("/v1/files/{file_id}", responses=errors(404, 500))
async def delete_file(request: Request, file_id: str) -> FileDeleted:
    """Remove a file."""
    await run_in_threadpool(_files(request).delete, file_id, caller_of(request).owner)
    return FileDeleted(id=file_id)


@router.get(
    "/v1/files/{file_id}/content",
    response_class=FileResponse,
    responses={
        200: {"content": {"text/plain": {}, "application/octet-stream": {}}, "description": "The file."},
        **errors(404),
    },
)
async def retrieve_file_content(request: Request, file_id: str) -> FileResponse:
    """The bytes of a file; its text, where its purpose is `file-extract`."""
    files = _files(request)
    file = await run_in_threadpool(files.get, file_id, caller_of(request).owner)
    is_text = file.purpose == "file-extract"
    return FileResponse(
        files.content_path(file),
        media_type="text/plain; charset=utf-8" if is_text else "application/octet-stream",
        headers={"x-content-type-options": "nosniff"},  # a browser must not run what somebody uploaded
    )


def _files(request: Request) -> FileStore:
    files: FileStore = request.app.state.files
    return files


def _file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id, bytes=file.bytes, created_at=file.created_at, filename=file.filename, purpose=file.purpose
    )


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        yield piece


def _require_text(file: BinaryIO, filename: str) -> None:
    """Refuse what is not UTF-8 text: nothing here reads PDF, Office or picture files."""
    content = b"".join(_pieces(file))
    try:
        is_text = b"\0" not in content and not content.startswith(FORMATS_THAT_LOOK_LIKE_TEXT)
        content.decode("utf-8")
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise ApiError(
            f"{filename!r} is not UTF-8 text; file-extract reads text files only (txt, md, json, csv, code)",
            status=400,
            field="file",
            code="unsupported_file",
        )
