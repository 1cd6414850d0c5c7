"""`/`, and `/docs` by Swagger UI: pages that load nothing from anywhere else, so work offline.

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
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f5;border-radius:4px}
code{padding:.1em .3em}pre{padding:.8em;overflow:auto}a{color:#0b57d0}
@media(prefers-color-scheme:dark){body{background:#18181b;color:#e4e4e7}
code,pre{background:#27272a}a{color:#8ab4f8}}
"""
_HOME_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
# Swagger UI's icons are data in its style sheet.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_HOME = """
<h1>tuner</h1>
<p>A hyperparameter tuning service for PyTorch. Submit a study, walk away, and come back to the
best hyperparameters, the trained model, and a record of every trial.</p>
<ul>
<li><a href="/dashboard">/dashboard</a> – the studies, in the Optuna dashboard (read-only)</li>
<li><a href="/docs">/docs</a> – the REST API; <a href="/openapi.json">openapi.json</a></li>
<li><a href="/v1/studies">/v1/studies</a> – the studies, as JSON</li>
<li><a href="/readyz">/readyz</a> – is everything there that is needed?</li>
</ul>
<p>From a shell:</p>
<pre>tuner validate study.yaml
tuner submit study.yaml --watch
tuner list</pre>
"""


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
async def home() -> HTMLResponse:
    """Say what this is, and where to go."""
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>tuner</title><style>{_STYLE}</style></head><body>{_HOME}</body></html>"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": _HOME_POLICY})


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
