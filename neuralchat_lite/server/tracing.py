"""OpenTelemetry: a span for each request, with what its answer has cost, sent by OTLP over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuralchat_lite import installed_version
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import shown

SERVICE = "neuralchat_lite"
NOT_TRACED = "/health,/ready,/metrics"  # they are asked all the time


def tracer_provider(endpoint: str) -> Any:
    """What sends spans to a collector, such as http://localhost:4318/v1/traces. Call its
    `shutdown` at the end, or the last ones are lost.

    Raises ConfigError for another kind of address, and without the packages of the extra `otel`.
    """
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(
            f"the endpoint of traces must be an http(s) address, got {shown(endpoint)}: give for "
            "example http://localhost:4318/v1/traces"
        )
    try:
        import opentelemetry.instrumentation.asgi  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"traces need packages that are not installed ({error.name}): "
            "run `pip install 'neuralchat_lite[serve,otel]'`"
        ) from None
    version = installed_version()
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: SERVICE, SERVICE_VERSION: version})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def trace_requests(app: FastAPI, provider: Any) -> None:
    """provider: of the spans; see `tracer_provider`"""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app.add_middleware(Costs)
    # Each event of a stream would have a span of its own.
    app.add_middleware(
        OpenTelemetryMiddleware,
        tracer_provider=provider,
        excluded_urls=NOT_TRACED,
        exclude_spans=["receive", "send"],
    )


class Costs:
    """Says on the span of a request what its answer has cost, before the span ends, which is with
    the last part that is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import trace

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                cost = scope.get("state", {}).get("cost")
                if cost is not None:
                    trace.get_current_span().set_attributes(cost.attributes())
            await send(message)

        await self.app(scope, receive, send_noting)
