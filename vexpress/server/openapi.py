"""The API's description: request bodies made of the options' tables, and a page that shows it without other hosts."""

import html
import json
from typing import Any

from vexpress.options import SamplingOptions
from vexpress.server.schema import FILE_FIELDS, request_schema
from vexpress.server.settings import ServeSettings

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["field", "message"],
            "properties": {"field": {"type": ["string", "null"]}, "message": {"type": "string"}},
        }
    },
}
STATUSES = {
    400: "the request cannot be read",
    401: "a valid token is missing",
    403: "another web page's script",
    404: "there is no such thing",
    405: "no such method here",
    408: "the client stopped sending",
    409: "the job is not done",
    413: "too large",
    415: "another type of content",
    421: "another host's name",
    422: "a field cannot be used; it is named",
    429: "the queue is full; see Retry-After",
    503: "the model is being loaded",
    507: "the disk, or the room for files, is full",
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status, text in STATUSES.items()
}
JOB_SCHEMA = {
    "type": "object",
    "required": ["id", "state"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "state": {"enum": ["queued", "running", "done", "failed", "cancelled"]},
        "queue_position": {"type": ["integer", "null"]},
        "progress": {"type": ["object", "null"]},
        "error": {"type": ["object", "null"]},
        "video": {"type": ["object", "null"]},
    },
}
BINARY = {"type": "string", "format": "binary"}
CONTENT_TYPES = {
    "/v1/videos/{job_id}/content": ("video/mp4", (200, 206)),
    "/v1/videos/{job_id}/stream": ("video/mp4", (200,)),
    "/v1/videos/{job_id}/events": ("text/event-stream", (200,)),
    "/v1/videos/{job_id}/files/{name}": ("application/octet-stream", (200, 206)),
    "/v1/examples/{kind}/{name}": ("application/octet-stream", (200, 206)),
}
STYLE = "/static/style.css"


def complete_schema(schema: dict[str, Any], defaults: SamplingOptions, settings: ServeSettings) -> dict[str, Any]:
    """Adds to FastAPI's schema what it cannot know: bodies that are streamed, answers that are files, the token."""
    paths = schema["paths"]
    bodies = {
        "multipart/form-data": {"schema": request_schema(defaults, settings, as_form=True)},
        "application/json": {"schema": request_schema(defaults, settings, as_form=False)},
    }
    for path in ("/v1/videos", "/v1/stream"):
        paths[path]["post"]["requestBody"] = {"required": True, "content": bodies}
    picture = {"portrait": {**BINARY, "description": FILE_FIELDS["portrait"]}, "portrait_example": {"type": "string"}}
    body = {"multipart/form-data": {"schema": {"type": "object", "properties": picture}}}
    paths["/v1/portrait"]["post"]["requestBody"] = {"required": True, "content": body}
    paths["/v1/stream"]["post"]["responses"]["200"] = {
        "description": "video",
        "content": {"video/mp4": {"schema": BINARY}},
    }
    job = {"application/json": {"schema": JOB_SCHEMA}}
    paths["/v1/videos"]["post"]["responses"]["202"] = {"description": "the job", "content": job}
    paths["/v1/videos/{job_id}"]["get"]["responses"]["200"] = {"description": "the job", "content": job}
    for path, (kind, statuses) in CONTENT_TYPES.items():
        for status in statuses:
            answer = {"description": "file", "content": {kind: {"schema": BINARY}}}
            paths[path]["get"]["responses"][str(status)] = answer
    for operations in paths.values():
        for operation in operations.values():
            for status, answer in ANSWERS.items():
                operation["responses"].setdefault(str(status), answer)
                if status == 422:
                    operation["responses"]["422"] = answer
    if settings.token is not None:
        schema["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        schema["security"] = [{"token": []}]
    return schema


def render_docs(schema: dict[str, Any]) -> str:
    """The API as a page."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>API - V-Express</title><link rel=stylesheet href={STYLE}><body class=docs><main>",
        "<h1>API</h1><p><a href='/'>The page</a> · <a href='/openapi.json'>OpenAPI schema</a> · errors are JSON: "
        "<code>{&quot;error&quot;: {&quot;field&quot;: ..., &quot;message&quot;: ...}}</code></p>",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<section class=card><h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(
                f"<p>{html.escape(operation.get('summary', ''))}. {html.escape(operation.get('description', ''))}</p>"
            )
            parts += _render_body(operation)
            codes = [code for code in operation["responses"] if code.startswith("2")]
            parts.append(f"<p class=hint>Answers {', '.join(codes)}, or an error.</p></section>")
    parts.append(
        "<section class=card><h2><code>WebSocket /v1/stream</code></h2><p>First a JSON object with the fields of "
        "<code>POST /v1/videos</code> but sound, and <code>output</code> (mp4, jpeg), <code>encoding</code> "
        "(pcm_s16le, opus), <code>sampling_rate</code>, <code>channels</code>. Then sound as binary messages, and "
        "<code>{&quot;type&quot;: &quot;end&quot;}</code>. See docs/serve.md.</p></section></main></body></html>"
    )
    return "\n".join(parts)


def _render_body(operation: dict[str, Any]) -> list[str]:
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" not in content:
        return []
    rows = ["<p>multipart/form-data, or JSON with files in base64:</p><div class=scroll><table>"]
    rows.append("<tr><th>field</th><th>type</th><th>default</th><th>what it is</th></tr>")
    for name, field in content["multipart/form-data"]["schema"]["properties"].items():
        kind = " | ".join(map(str, field["enum"])) if "enum" in field else field["type"]
        kind = "file" if field.get("format") == "binary" else kind
        bounds = [str(field[key]) for key in ("minimum", "maximum") if key in field]
        kind += f" {' to '.join(bounds)}" if bounds else ""
        default = json.dumps(field["default"]) if "default" in field else ""
        cells = (
            f"<code>{name}</code>",
            html.escape(kind),
            html.escape(default),
            html.escape(field.get("description", "")),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [*rows, "</table></div>"]
