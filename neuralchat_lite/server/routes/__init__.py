"""The routes, one module for each family; ROUTERS are all."""

from neuralchat_lite.server.routes import chat, completions, health, models

ROUTERS = (health.router, models.router, chat.router, completions.router)
