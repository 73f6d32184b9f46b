"""The page at `/`: static files of this package, which load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}


def add_page(app: FastAPI) -> None:
    """index.html at `/`, and the files beside it below `/page/`. Only files that are there now are
    served, so a name can lead nowhere else."""
    files = {
        path.relative_to(FOLDER).as_posix(): path
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix in TYPES
    }

    def send(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return FileResponse(files[name], headers=HEADERS, media_type=TYPES[files[name].suffix])

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return send("index.html")

    @app.get("/page/{name:path}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        return send(name)
