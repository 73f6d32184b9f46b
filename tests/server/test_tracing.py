"""Spans of requests, as a collector gets them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError

from .calls import ASK, Client
from .test_process import KEY, Process

pytest.importorskip("opentelemetry.instrumentation.asgi", reason="traces need the extra `otel`")

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736"


class Spans:
    """Those of an application, by the route of their request."""

    def __init__(self, model: ncl.Model) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from neuralchat_lite.server.app import create_app
        from neuralchat_lite.server.tracing import trace_requests

        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        app = create_app({"nano": model})
        trace_requests(app, provider)
        self.client = Client(app)

    def taken(self) -> list[Any]:
        found = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return found


@pytest.fixture
def spans(nano: ncl.Model) -> Spans:
    return Spans(nano)


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_has_the_cost_of_its_answer_and_the_callers_trace(
    spans: Spans, stream: bool
) -> None:
    body = {"messages": ASK, "max_tokens": 7, "ignore_eos": True, "stream": stream}
    headers = {"traceparent": f"00-{PARENT}-00f067aa0ba902b7-01"}
    assert spans.client.post("/v1/chat/completions", body, headers=headers).is_success
    [span] = spans.taken()
    assert f"{span.context.trace_id:032x}" == PARENT
    known = span.attributes
    assert known["gen_ai.response.model"] == "nano"
    assert known["gen_ai.usage.output_tokens"] == 7
    assert known["gen_ai.usage.input_tokens"] > 0
    assert 0 < known["gen_ai.latency.time_to_first_token"] < 60
    assert ASK[0]["content"] not in repr(dict(known))


def test_embeddings_have_a_cost_and_refusals_none(spans: Spans) -> None:
    assert spans.client.post("/v1/embeddings", {"input": "calculate"}).is_success
    assert spans.client.post("/v1/chat/completions", {}).status_code == 400
    embedded, refused = spans.taken()
    assert embedded.attributes["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.usage.output_tokens" not in embedded.attributes
    assert not any(name.startswith("gen_ai") for name in refused.attributes)


def test_what_is_asked_all_the_time_has_no_span(spans: Spans) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert spans.client.get(path).is_success
    assert not spans.taken()


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://localhost/x", "http://", ""])
def test_another_kind_of_address_is_refused(endpoint: str) -> None:
    from neuralchat_lite.server.tracing import tracer_provider

    with pytest.raises(ConfigError, match="4318/v1/traces"):
        tracer_provider(endpoint)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuralchat_lite.server.tracing import tracer_provider

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match=r"pip install 'neuralchat_lite\[serve,otel\]'"):
        tracer_provider("http://localhost:4318/v1/traces")


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """(its address, the bodies that it has got)"""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_command_sends_its_last_spans_before_it_ends(
    tmp_path: Path, collector: tuple[str, list[bytes]]
) -> None:
    address, bodies = collector
    process = Process(tmp_path, "--otlp-traces-endpoint", address)
    try:
        body = {"messages": ASK, "max_tokens": 3}
        headers = {"Authorization": f"Bearer {KEY}"}
        asked = f"{process.address}/chat/completions"
        assert httpx.post(asked, json=body, headers=headers).is_success
    finally:
        assert process.end() == 0
    sent = b"".join(bodies)
    assert b"gen_ai.usage.output_tokens" in sent and b"neuralchat_lite" in sent
