"""`/v1/datasets`: bring data, see what there is, take it away."""

import base64
import binascii
import errno
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tuner_service.api.auth import CallerDep
from tuner_service.api.http.openapi import errors
from tuner_service.api.http.responses import json_answer
from tuner_service.api.service import ServiceDep
from tuner_service.datasets import Receiver
from tuner_service.datasets.store import too_large
from tuner_service.definition import Upload, catalogue_view
from tuner_service.definition.catalogue import UPLOAD_NAME
from tuner_service.definition.uploads import brought_entry
from tuner_service.errors import InputError, UnavailableError
from tuner_service.lifecycle.datasets import remove_dataset, sweep_dataset
from tuner_service.reads.workers import listed_modules

router = APIRouter(prefix="/v1/datasets", tags=["catalogue"])

BLOCK_BYTES = 1 << 20  # handed to a thread at once: a hop per network packet would cost more

Name = Annotated[
    str,
    Path(description="The data set's name.", pattern=UPLOAD_NAME, max_length=64),
]

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file: CSV, Parquet, NumPy's .npz, or a zip of images.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Datasets(BaseModel):
    """Data there is: `kind` is `uploaded`, or, with options, `built-in` or `module`."""

    items: list[dict[str, Any]]


@router.get("", response_model=Datasets, responses=errors(), summary="List data sets")
def list_datasets(service: ServiceDep, _: CallerDep) -> Response:
    """Return the built-in data sets, the uploaded ones, and those that workers' modules load."""
    built_in = [{"kind": "built-in", **entry} for entry in catalogue_view("datasets")]
    uploaded = [
        {"kind": "uploaded", **upload.model_dump(mode="json")} for upload in service.datasets.all()
    ]
    names = {one["name"] for one in uploaded}  # which come before a module's
    brought = [
        {"kind": "module", **brought_entry(one.name, one.data).model_dump(mode="json")}
        for one in listed_modules(service.db).known.values()
        if one.is_data and one.name not in names
    ]
    return json_answer(Datasets(items=[*built_in, *uploaded, *brought]))


@router.put(
    "/{name}",
    response_model=Upload,
    responses={
        201: {"model": Upload, "description": "The data set is new."},
        **errors(400, 413, 422),
    },
    openapi_extra=_BODY,
    summary="Upload a data set",
)
async def put_dataset(
    service: ServiceDep,
    _: CallerDep,
    request: Request,
    name: Name,
    content_digest: Annotated[
        str | None,
        Header(
            description="`sha-256=:BASE64:` (RFC 9530) of the file; checked when it is given.",
            max_length=256,
        ),
    ] = None,
) -> Response:
    """Store a file under a name; its content tells the format.

    Studies keep to the version they were submitted with: to upload a name again changes none.
    """
    expected = _sha256(content_digest)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > service.datasets.max_bytes:
        raise too_large(service.datasets.max_bytes)
    before = await run_in_threadpool(service.datasets.find, name)
    try:
        with await run_in_threadpool(service.datasets.receive, name) as receiver:
            await _receive(request, receiver)
            upload = await run_in_threadpool(receiver.keep, sha256=expected)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnavailableError("the disk with the data directory is full; make room") from error
    await run_in_threadpool(sweep_dataset, service.db, service.datasets, name)
    return json_answer(upload, 201 if before is None else 200)


async def _receive(request: Request, receiver: Receiver) -> None:
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= BLOCK_BYTES:
            await run_in_threadpool(receiver.write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(receiver.write, bytes(waiting))


def _sha256(header: str | None) -> str | None:
    """Return the SHA-256 in a Content-Digest header, in hexadecimal; other digests are ignored."""
    found = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):", header or "")
    if found is None:
        return None
    try:
        return base64.b64decode(found.group(1), validate=True).hex()
    except binascii.Error as error:
        raise InputError(f"Content-Digest is not `sha-256=:BASE64:`, but {header!r}") from error


@router.get(
    "/{name}", response_model=Upload, responses=errors(404, 422), summary="Get an uploaded data set"
)
def get_dataset(service: ServiceDep, _: CallerDep, name: Name) -> Response:
    """Return what is known of the version that the name stands for."""
    return json_answer(service.datasets.get(name))


@router.delete(
    "/{name}",
    status_code=204,
    responses=errors(404, 409, 422),
    summary="Delete an uploaded data set",
)
def delete_dataset(service: ServiceDep, _: CallerDep, name: Name) -> Response:
    """Delete it with all its versions; refused while a study that has not ended uses it."""
    remove_dataset(service.db, service.datasets, name)
    return Response(status_code=204)
