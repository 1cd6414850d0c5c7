"""`/` and `/docs`: two pages that load nothing from anywhere else, so that they work offline."""

import json
import re
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f5;border-radius:4px}
code{padding:.1em .3em}pre{padding:.8em;overflow:auto}a{color:#0b57d0}
h2{margin-top:2.5rem}h3{margin:1.8rem 0 .3rem}table{border-collapse:collapse}
td,th{border-bottom:1px solid #ddd;padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top}
.method{display:inline-block;min-width:4.2em;font-weight:700}
summary{cursor:pointer;color:#555}
@media(prefers-color-scheme:dark){body{background:#18181b;color:#e4e4e7}
code,pre{background:#27272a}a{color:#8ab4f8}td,th{border-color:#3f3f46}summary{color:#a1a1aa}}
"""
_CODE = re.compile(r"`([^`]+)`")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

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


def _page(title: str, body: str) -> HTMLResponse:
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})


@router.get("/")
async def home() -> HTMLResponse:
    """Say what this is, and where to go."""
    return _page("tuner", _HOME)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Show the OpenAPI document to people."""
    return _page("tuner – REST API", reference(request.app.openapi()))


def reference(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    parts = [f"<h1>{escape(document['info']['title'])}</h1>"]
    parts += [f"<p>{_prose(line)}</p>" for line in document["info"]["description"].split("\n\n")]
    parts.append('<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>')
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method, path, operation))
    for tag, operations_html in groups.items():
        parts += [f"<h2>{escape(tag)}</h2>", *operations_html]
    return "".join(parts)


def _prose(text: str) -> str:
    """Return text as HTML, with `code` set as such."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    return (
        f'<h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>'
        f"<p><b>{escape(operation.get('summary', ''))}.</b> "
        f"{_prose(operation.get('description', ''))}</p>"
        + _parameters(operation.get("parameters", []))
        + _examples(operation.get("requestBody", {}))
        + _responses(operation["responses"])
    )


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}</td>"
        f"<td>{_prose(p.get('description', ''))}{_domain(p['schema'])}</td></tr>"
        for p in parameters
    ]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _domain(schema: dict[str, Any]) -> str:
    parts = []
    for option in schema.get("anyOf", [schema]):
        if "enum" in option:
            parts.append("one of " + ", ".join(map(str, option["enum"])))
        if "minimum" in option and "maximum" in option:
            parts.append(f"{option['minimum']:g} to {option['maximum']:g}")
    if schema.get("default") is not None:
        parts.append(f"default {schema['default']}")
    return f" <i>({escape('; '.join(parts))})</i>" if parts else ""


def _examples(body: dict[str, Any]) -> str:
    examples = body.get("content", {}).get("application/json", {}).get("examples", {})
    return "".join(
        f"<details><summary>Example body: {escape(example['summary'])}</summary>"
        f"<pre>{escape(json.dumps(example['value'], indent=2))}</pre></details>"
        for example in examples.values()
    )


def _responses(responses: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{status}</code></td><td>{_prose(response['description'])}</td></tr>"
        for status, response in responses.items()
    )
    return f"<details><summary>Answers</summary><table>{rows}</table></details>"
