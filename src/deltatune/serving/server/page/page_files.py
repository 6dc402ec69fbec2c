"""The web page at /: its own HTML, CSS and JavaScript, and a policy under which nothing else loads or runs."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

from deltatune.core.theme import theme

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def add_page(app: FastAPI) -> None:
    """Add the page and its files, which are read once."""
    folder = files("deltatune.serving.server.page")
    content = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in TYPES}
    content["theme.css"] = theme().encode()

    def file(name: str) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(content[name], headers=headers, media_type=TYPES[name.rpartition(".")[2]])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("page.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in content:
            return Response(status_code=404)
        return file(name)
