"""The routes, one module for each family; ROUTERS are all."""

from neuralchat_lite.server.routes import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    models,
    responses,
    texts,
)

ROUTERS = (
    health.router,
    models.router,
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    texts.router,
)
