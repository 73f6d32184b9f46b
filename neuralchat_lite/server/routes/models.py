"""Which models there are, and what runs each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from openai.types import Model as ModelEntry

from neuralchat_lite.server.desk import Desk, desks_of

router = APIRouter()


def entry(desk: Desk) -> dict[str, Any]:
    made = ModelEntry(
        id=desk.name, created=desk.created, object="model", owned_by="neuralchat_lite"
    ).model_dump(exclude_unset=True)
    return {**made, "max_model_len": desk.model.decoder.context_length}


@router.get("/v1/models")
async def list_models(request: Request) -> JSONResponse:
    found = [entry(desk) for desk in desks_of(request).all.values()]
    return JSONResponse({"object": "list", "data": found})


@router.get("/v1/models/{name:path}")
async def describe_model(request: Request, name: str) -> JSONResponse:
    """One model, with its `report()` and the sampling that it has unless a request says more."""
    desk = desks_of(request).of(name)
    report = await desk.in_thread(desk.model.report)
    report.pop("folder")  # a path of this machine
    report.pop("generation_config_not_used")  # `sampling_defaults` says what is used
    return JSONResponse({**entry(desk), "sampling_defaults": desk.defaults, "report": report})
