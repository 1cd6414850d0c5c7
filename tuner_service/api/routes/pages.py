"""The page, and `/docs` by Swagger UI: they load nothing from anywhere else, so work offline.

The page is one HTML file and a few modules of `tuner_service/page`, served as they are; what an
address shows is for `main.js` to say. It holds nothing secret: all comes from the API.

Swagger UI's files come with the package fastapi-offline. FastAPI's own page for it has its script
in the HTML; ours is a file, so that the policy need not allow scripts in a page.
"""

from http import HTTPStatus
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_ASSET_NAMES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"})
_PAGE = files("tuner_service") / "page"
_KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_PARTS = frozenset(part.name for part in _PAGE.iterdir() if part.name.rpartition(".")[2] in _KINDS)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
# Swagger UI's icons are data in its style sheet.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_DOCS = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>tuner – REST API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon.png"></head><body><div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script>
</body></html>
"""
_START = """
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""


@router.get("/")
@router.get("/studies/{study}")
@router.get("/submit")
@router.get("/login")
async def page() -> FileResponse:
    """Return the page, which is the same at each of its addresses."""
    return FileResponse(str(_PAGE / "index.html"), headers=_PAGE_HEADERS)


@router.get("/page/{name}")
async def page_part(name: Annotated[str, Path()]) -> FileResponse:
    """Return one of the page's scripts, its style sheet or its icon."""
    if name not in _PARTS:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    kind = _KINDS[name.rpartition(".")[2]]
    return FileResponse(str(_PAGE / name), headers=_PAGE_HEADERS, media_type=kind)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Show the OpenAPI document to people."""
    return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})


@router.get("/docs/start.js")
async def start() -> Response:
    """Start Swagger UI."""
    return Response(_START, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: Annotated[str, Path()]) -> FileResponse:
    """Return one of Swagger UI's files."""
    if name not in _ASSET_NAMES:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(str(files("fastapi_offline") / "static" / name))
