"""Clients of others make their ordinary calls. Each is skipped where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

import neuralchat_lite as ncl

ASKED = "calculate 100 + 520 + 60"
MESSAGES = [{"role": "user", "content": ASKED}]
KEY = "secret"


@pytest.fixture
def address(serving: Callable[..., str]) -> str:
    return serving(api_keys=(KEY,))


@pytest.fixture
def wanted(nano: ncl.Model) -> str:
    return nano.generate(MESSAGES, temperature=0, max_new_tokens=24).text


def langchain(address: str, room: int = 24, **more: Any) -> Any:
    found = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return found.ChatOpenAI(
        base_url=f"{address}/v1", api_key=KEY, model="nano", temperature=0, max_tokens=room, **more
    )


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_invokes(address: str, wanted: str, responses: bool) -> None:
    answer = langchain(address, use_responses_api=responses).invoke(ASKED)
    assert answer.text == wanted
    assert answer.usage_metadata["output_tokens"] == 24


def test_langchain_streams_with_usage(address: str, wanted: str) -> None:
    parts = list(langchain(address).stream(ASKED, stream_usage=True))
    assert "".join(part.content for part in parts) == wanted
    [usage] = [part.usage_metadata for part in parts if part.usage_metadata]
    assert usage["total_tokens"] == usage["input_tokens"] + 24


def test_langchain_batches(address: str, wanted: str) -> None:
    answers = langchain(address).batch([ASKED, "calculate 1 + 2", ASKED])
    assert [answers[0].content, answers[2].content] == [wanted, wanted]


def test_langchain_gets_an_object_of_its_class(address: str) -> None:
    pydantic = pytest.importorskip("pydantic")
    pytest.importorskip("llguidance", reason="forms of answers need llguidance")
    verdict = pydantic.create_model("Verdict", size=(Literal["small", "large"], ...))
    chat = langchain(address, room=100)  # the model writes much white space
    found = chat.with_structured_output(verdict, method="json_schema").invoke(ASKED)
    assert isinstance(found, verdict)


def test_langchain_is_told_where_a_template_reads_no_tools(address: str) -> None:
    tools = pytest.importorskip("langchain_core.tools", reason="langchain-core is not installed")
    openai = pytest.importorskip("openai")

    def turn(way: str) -> None:
        """Turn."""

    chat = langchain(address).bind_tools([tools.tool(turn)])
    with pytest.raises(openai.BadRequestError, match="does not read tools"):
        chat.invoke("left")


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_calls_a_tool_and_goes_on_after_its_result(
    caller: ncl.Model, serving: Callable[..., str], responses: bool
) -> None:
    tools = pytest.importorskip("langchain_core.tools", reason="langchain-core is not installed")
    messages = pytest.importorskip("langchain_core.messages")
    pytest.importorskip("llguidance", reason="forms of answers need llguidance")

    def turn(way: Literal["left", "right"]) -> str:
        """Turn."""
        return f"turned {way}"

    tool = tools.tool(turn)
    # Much white space: as much room as the context has.
    chat = langchain(serving(caller), room=280, use_responses_api=responses)
    bound = chat.bind_tools([tool], tool_choice="turn", strict=True)
    asked = messages.HumanMessage("which way?")
    called = bound.invoke([asked])
    [call] = called.tool_calls
    assert call["name"] == "turn" and call["args"]["way"] in ("left", "right")
    result = tool.invoke(call)
    assert result.content == f"turned {call['args']['way']}"
    after = chat.bind_tools([tool], tool_choice="none").invoke([asked, called, result])
    assert after.text and not after.tool_calls
    streamed = None
    for part in bound.stream([asked]):
        streamed = part if streamed is None else streamed + part
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [
        (call["name"], call["args"])
    ]


def test_langchain_embeds(address: str) -> None:
    found = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    embeddings = found.OpenAIEmbeddings(
        base_url=f"{address}/v1", api_key=KEY, model="nano", check_embedding_ctx_length=False
    )
    one, two, again = embeddings.embed_documents(["one", "two", "one"])
    assert one == again != two
    assert sum(value * value for value in one) == pytest.approx(1, rel=1e-3)


def anthropic(address: str, key: str = KEY) -> Any:
    found = pytest.importorskip("anthropic", reason="anthropic is not installed")
    return found.Anthropic(base_url=address, api_key=key, max_retries=0)


# Its newest versions have no parameter for the temperature.
SAID: dict[str, Any] = {
    "model": "nano",
    "max_tokens": 24,
    "messages": MESSAGES,
    "extra_body": {"temperature": 0},
}


def test_anthropic_creates_a_message(address: str, wanted: str) -> None:
    with anthropic(address) as client:
        message = client.messages.create(**SAID)
    assert message.content[0].text == wanted
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 24)


def test_anthropic_streams_a_message(address: str, wanted: str) -> None:
    with anthropic(address) as client, client.messages.stream(**SAID) as stream:
        assert "".join(stream.text_stream) == wanted
        assert stream.get_final_message().usage.output_tokens == 24


def test_anthropic_counts_tokens_as_the_answer_does(address: str) -> None:
    with anthropic(address) as client:
        counted = client.messages.count_tokens(model="nano", messages=MESSAGES).input_tokens
        assert counted == client.messages.create(**SAID).usage.input_tokens


def test_anthropic_knows_its_errors(address: str) -> None:
    package = pytest.importorskip("anthropic", reason="anthropic is not installed")
    with anthropic(address, "wrong") as client, pytest.raises(package.AuthenticationError):
        client.messages.create(**SAID)
    with anthropic(address) as client, pytest.raises(package.NotFoundError):
        client.messages.create(**(SAID | {"model": "other"}))


def llama_index(address: str, chat: bool) -> Any:
    name = "llama_index.llms.openai_like"
    found = pytest.importorskip(name, reason="llama-index-llms-openai-like is not installed")
    return found.OpenAILike(
        model="nano", api_base=f"{address}/v1", api_key=KEY, is_chat_model=chat,
        context_window=256, max_tokens=24, temperature=0,
    )  # fmt: skip


def test_llama_index_completes_and_streams(address: str, wanted: str, nano: ncl.Model) -> None:
    chat = llama_index(address, chat=True)
    assert chat.complete(ASKED).text == wanted
    assert "".join(part.delta or "" for part in chat.stream_complete(ASKED)) == wanted
    plain = nano.generate(ASKED, temperature=0, max_new_tokens=24).text
    assert llama_index(address, chat=False).complete(ASKED).text == plain


def test_llm_prompts(
    address: str, wanted: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm", reason="llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: nc, model_name: nano, api_base: '{address}/v1', api_key_name: nc}}\n"
    )
    model = llm.get_model("nc")
    for stream in (True, False):
        answer = model.prompt(ASKED, key=KEY, stream=stream, temperature=0, max_tokens=24)
        assert answer.text() == wanted
