"""A process of `neuralchat-lite serve`, and the openai client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..patience import patience
from .calls import ASK

NANO = Path(__file__).parents[2] / "examples/nano/model"
KEY = "a-key"
openai = pytest.importorskip("openai", reason="the server needs the extra `serve`")


class Process:
    def __init__(self, folder: Path, *arguments: str) -> None:
        keys = folder / "keys"
        keys.write_text(f"# of the tests\n\n{KEY}\n")
        keys.chmod(0o600)
        options = ["--dtype", "fp32", "--port", "0", "--api-key-file", str(keys), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "neuralchat_lite", "serve", str(NANO), *options],
            env=os.environ | {"NEURALCHAT_LITE_CACHE": str(folder / "cache")},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("Listening at "):
                break
        else:
            raise AssertionError("".join(self.lines))
        self.address = line.split()[2]
        self.reader = threading.Thread(target=self.lines.extend, args=(self.process.stderr,))
        self.reader.start()

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(patience(30))
        self.reader.join()
        return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("serve"))
    yield process
    assert process.end() == 0


@pytest.fixture
def client(server: Process) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.address, api_key=KEY, max_retries=0) as client:
        yield client


ASKED: dict[str, Any] = {"model": "model", "messages": ASK, "temperature": 0, "max_tokens": 24}


def test_the_client_chats(client: Any) -> None:
    answer = client.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens_details is not None


def test_the_client_streams(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED).choices[0].message.content
    with client.chat.completions.create(**ASKED, stream=True) as parts:
        text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole


def test_the_streaming_helper_puts_the_answer_together(client: Any) -> None:
    asked = {**ASKED, "max_tokens": 200}  # the helper takes whole answers alone
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_the_asynchronous_client_gets_the_same(server: Process, client: Any) -> None:
    whole = client.chat.completions.create(**ASKED).choices[0].message.content

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=server.address, api_key=KEY) as other:
            answers = await asyncio.gather(
                *(other.chat.completions.create(**ASKED) for _ in range(8))
            )
            found = [answer.choices[0].message.content for answer in answers]
            parts = await other.chat.completions.create(**ASKED, stream=True)
            streamed = [part.choices[0].delta.content or "" async for part in parts]
        return [*found, "".join(streamed)]

    assert asyncio.run(ask()) == [whole] * 9


def test_the_client_completes_texts(client: Any) -> None:
    answer = client.completions.create(model="model", prompt="calculate 1 + 1", temperature=0)
    parts = client.completions.create(
        model="model", prompt="calculate 1 + 1", temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text


def test_the_client_lists_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["model"]
    assert client.models.retrieve("model").id == "model"


def test_errors_are_the_clients_own(server: Process, client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(
            model="model", messages=[{"role": "user", "content": "1 + " * 2000}]
        )
    with pytest.raises(openai.NotFoundError, match="model"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.address, api_key="wrong").models.list()


def test_sigterm_lets_a_running_answer_end_and_takes_no_more(tmp_path: Path) -> None:
    server = Process(tmp_path)
    body = {**ASKED, "max_tokens": 400, "stream": True, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", f"{server.address}/chat/completions", json=body, headers=headers, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(patience(30)) == 0
    server.reader.join()
    log = "".join(server.lines)
    assert "POST /v1/chat/completions 200" in log and "Traceback" not in log
    assert "calculate" not in log


def test_ctrl_c_ends_it_as_other_commands(tmp_path: Path) -> None:
    server = Process(tmp_path)
    assert server.end(signal.SIGINT) == 130
    assert "Traceback" not in "".join(server.lines)
