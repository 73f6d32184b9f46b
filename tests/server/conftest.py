"""What the tests of the server share: the nano model behind an application, and clients of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl

from ..patience import patience
from .calls import Client

PACKAGES = ("fastapi", "uvicorn", "openai", "prometheus_client")

# reads tools, as those of Hermes models do
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} Write <tool_call>.\n{% endif %}"
    "{% for m in messages %}### {{ m.role }}: {{ m.reasoning_content }} {{ m.content }}\n"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.at }}\n{% endfor %}"
    "{% endfor %}### assistant:\n"
)
NANO = Path(__file__).parents[2] / "examples/nano/model"


@pytest.fixture(autouse=True, scope="session")
def packages() -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason="the server needs the extra `serve`")


@pytest.fixture(scope="session")
def nano() -> Iterator[ncl.Model]:
    """Unquantized, so that nothing is written."""
    model = ncl.load(NANO, dtype="fp32")
    yield model
    model.close()


@pytest.fixture
def client_of(nano: ncl.Model) -> Callable[..., Client]:
    """client_of(**settings) -> a client of an application with the nano model, as "nano\""""

    from neuralchat_lite.server.app import create_app
    from neuralchat_lite.server.settings import Settings

    def make(**settings: Any) -> Client:
        return Client(create_app({"nano": nano}, Settings(**settings)))

    return make


@pytest.fixture
def client(client_of: Callable[..., Client]) -> Client:
    return client_of()


@pytest.fixture(scope="session")
def caller() -> Iterator[ncl.Model]:
    """The nano model with a template that reads tools."""
    model = ncl.load(NANO, dtype="fp32")
    if not hasattr(model.tokenizer, "get_response_parser"):
        pytest.skip("needs transformers >= 5.13")
    model.tokenizer.chat_template = TEMPLATE
    yield model
    model.close()


@pytest.fixture
def calling(caller: ncl.Model) -> Client:
    from neuralchat_lite.server.app import create_app
    from neuralchat_lite.server.settings import Settings

    return Client(create_app({"nano": caller}, Settings()))


@pytest.fixture
def serving(nano: ncl.Model) -> Iterator[Callable[..., str]]:
    """serving(**settings) -> the address of a server in a thread of this process; `model` is
    another than the nano model"""
    import uvicorn

    from neuralchat_lite.server.app import create_app
    from neuralchat_lite.server.run import PatientProtocol, listen
    from neuralchat_lite.server.settings import Settings

    running = []

    def start(model: ncl.Model = nano, **settings: Any) -> str:
        app = create_app({"nano": model}, Settings(**settings))
        listening = listen("127.0.0.1", 0)
        config = uvicorn.Config(app, http=PatientProtocol, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.fixture
def slow_steps(nano: ncl.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """slow_steps(seconds): each step takes so much longer."""
    step = nano.scheduler.batch.step

    def slow(seconds: float) -> None:
        def waiting_step() -> bool:
            time.sleep(seconds)
            return step()

        monkeypatch.setattr(nano.scheduler.batch, "step", waiting_step)

    return slow


@pytest.fixture
def empty_soon(nano: ncl.Model) -> Callable[[], bool]:
    """Whether the scheduler has nothing to do within some seconds."""
    batch = nano.scheduler.batch

    def wait() -> bool:
        deadline = time.monotonic() + patience(10)
        while batch.running or batch.waiting or batch.arrivals:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    return wait
