"""The application: routes, behind the gate."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from neuralchat_lite import installed_version
from neuralchat_lite.model import Model
from neuralchat_lite.server.desk import Desks
from neuralchat_lite.server.errors import add_handlers
from neuralchat_lite.server.gate import Gate
from neuralchat_lite.server.metrics import Metrics
from neuralchat_lite.server.page import add_page
from neuralchat_lite.server.routes import ROUTERS
from neuralchat_lite.server.settings import Settings


def create_app(models: Mapping[str, Model], settings: Settings | None = None) -> FastAPI:
    """An ASGI application that answers with these models.

    models: by the names under which requests ask for them

    Raises ConfigError when there is none.
    """
    settings = settings or Settings()
    metrics = Metrics()
    desks = Desks(models, settings, metrics)
    metrics.watch(desks)
    # The pages that describe routes load their scripts from elsewhere, so there are none.
    app = FastAPI(
        title="neuralchat_lite",
        version=installed_version(),
        docs_url=None,
        redoc_url=None,
    )
    app.state.desks = desks
    for router in ROUTERS:
        app.include_router(router)
    add_page(app)
    add_handlers(app)
    app.add_middleware(Gate, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
