"""Whether the server lives, whether it takes requests, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from neuralchat_lite.server.desk import desks_of

router = APIRouter()


@router.get("/health")
async def health() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """503 while the server ends, or while there is no room for one more answer."""
    desks = desks_of(request)
    most = desks.settings.max_batch + desks.settings.max_queue
    full = [name for name, desk in desks.all.items() if desk.open >= most]
    if desks.draining or full:
        return JSONResponse({"status": "ending" if desks.draining else "full"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(desks_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
