"""/v1/chat/completions: messages in, the assistant's next one out, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion import ChoiceLogprobs as WholeLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import (
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
    ChoiceLogprobs,
)
from openai.types.chat.chat_completion_message_function_tool_call import Function

from neuralchat_lite.chat.answers import AnswerParser, Delta, ToolCall
from neuralchat_lite.chat.answers import whole as read_whole
from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.server.answers import Sum, chat_logprobs, finish_reason, note_tokens
from neuralchat_lite.server.calling import refuse_lost_calls
from neuralchat_lite.server.desk import Answers, Asked, Desk, desks_of
from neuralchat_lite.server.events import DONE, PING, EventStream, event
from neuralchat_lite.server.requests.chat import ChatRequest
from neuralchat_lite.server.requests.options import of_each_answer, options_of
from neuralchat_lite.server.streams import begun

router = APIRouter()


class Exchange:
    """One request and what is needed to answer it."""

    def __init__(self, request: Request, body: ChatRequest) -> None:
        self.request, self.body = request, body
        self.desk: Desk = desks_of(request).of(body.model)
        self.desk.refuse_long_list(len(body.messages), "messages")
        self.n = body.n or 1
        self.desk.refuse_too_many(self.n)  # before anything is made for each
        self.calling = body.calling()
        self.sum = Sum(self.n)
        self.head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": self.desk.name,
        }

    def asked(self) -> list[Asked]:
        messages, prefill = self.body.prompt()
        tokenizer = self.desk.model.tokenizer
        variables = self.calling.variables(tokenizer, self.body.chat_template_kwargs)
        refuse_lost_calls(tokenizer, messages, variables)
        options = options_of(
            self.body,
            self.desk.defaults,
            max_new_tokens=self.body.limit() or self.desk.model.decoder.context_length,
            logprobs=self.body.logprobs,
            top_logprobs=self.body.top_logprobs,
            chat_template_kwargs=variables,
            prefill=prefill or None,
            **self.calling.form(tokenizer, self.body.form()),
        )
        return [(messages, one) for one in of_each_answer(options, self.n)]

    def reader(self, answers: Answers, index: int) -> AnswerParser:
        """What takes an answer apart."""
        ids = answers.handles[index].prompt_ids
        return self.calling.reader(self.desk.model.tokenizer, ids, bool(self.body.form()))

    def answering(self) -> Any:
        return self.desk.answering(self.request, self.asked, self.n)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    exchange = Exchange(request, body)
    if body.stream:
        parts = await begun(stream(exchange))
        return EventStream(parts, desks_of(request).settings.write_timeout)
    answer = await whole(exchange)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


async def whole(exchange: Exchange) -> ChatCompletion:
    kept: list[list[Piece]] = [[] for _ in range(exchange.n)]
    async with exchange.answering() as answers, aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            kept[index].append(piece)
            exchange.sum.add(index, piece)
        choices = [choice(exchange, answers, index, kept[index]) for index in range(exchange.n)]
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    return ChatCompletion(
        **exchange.head,
        object="chat.completion",
        choices=choices,
        usage=usage,
        timings=exchange.sum.timings(),  # type: ignore[call-arg]  # beyond OpenAI's
    )


def choice(exchange: Exchange, answers: Answers, index: int, pieces: list[Piece]) -> Choice:
    known = None
    if pieces[0].logprob is not None:
        known = WholeLogprobs(content=chat_logprobs(answers, pieces), refusal=None)
    reader = exchange.reader(answers, index)
    deltas = [delta for piece in pieces for delta in reader.feed(piece.text, piece.token_id)]
    answer = read_whole([*deltas, *reader.close()])
    message = ChatCompletionMessage(role="assistant", content=answer.content, refusal=None)
    if answer.calls:
        message.tool_calls = [whole_call(call) for call in answer.calls]
    if answer.reasoning is not None:
        message.reasoning_content = answer.reasoning  # type: ignore[attr-defined]  # DeepSeek's
    return Choice(
        index=index,
        message=message,
        finish_reason=reason_of(pieces[-1], bool(answer.calls)),
        logprobs=known,
    )


def whole_call(call: ToolCall) -> ChatCompletionMessageFunctionToolCall:
    function = Function(name=call.name, arguments=call.arguments)
    return ChatCompletionMessageFunctionToolCall(id=call.id, type="function", function=function)


def reason_of(piece: Piece, calls: bool) -> Any:
    reason = finish_reason(piece)
    return "tool_calls" if calls and reason == "stop" else reason


def delta_of(delta: Delta) -> ChoiceDelta:
    if delta.call is not None:
        call = delta.call
        function = ChoiceDeltaToolCallFunction(name=call.name, arguments=call.arguments)
        part = ChoiceDeltaToolCall(index=call.index, id=call.id, type="function", function=function)
        return ChoiceDelta(tool_calls=[part])
    if delta.reasoning is not None:
        return ChoiceDelta(reasoning_content=delta.reasoning)  # type: ignore[call-arg]
    return ChoiceDelta(content=delta.content)


async def stream(exchange: Exchange) -> AsyncGenerator[bytes]:
    """Empty once the prompt is taken; then the parts."""
    ping = exchange.desk.settings.ping_interval
    async with exchange.answering() as answers:
        yield b""
        for index in range(exchange.n):
            yield chunk(exchange, index, ChoiceDelta(role="assistant", content=None))
        readers = [exchange.reader(answers, index) for index in range(exchange.n)]
        async with aclosing(answers.pieces(ping)) as pieces:
            async for found in pieces:
                if found is None:
                    yield PING
                    continue
                index, piece = found
                exchange.sum.add(index, piece)
                known = None
                if piece.logprob is not None:
                    known = ChoiceLogprobs(content=chat_logprobs(answers, [piece]), refusal=None)
                deltas = readers[index].feed(piece.text, piece.token_id)
                if piece.finish_reason is not None:
                    deltas += readers[index].close()
                if not deltas and known is not None and known.content:
                    deltas = [Delta(content="")]  # held back, but its log-probability is known
                for delta in deltas:
                    yield chunk(exchange, index, delta_of(delta), known)
                    known = None
                if (reason := reason_of(piece, readers[index].calls > 0)) is not None:
                    yield chunk(exchange, index, ChoiceDelta(), reason=reason)
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    if exchange.body.with_usage:
        yield event(
            ChatCompletionChunk(
                **exchange.head,
                object="chat.completion.chunk",
                choices=[],
                usage=usage,
                timings=exchange.sum.timings(),  # type: ignore[call-arg]
            )
        )
    yield DONE


def chunk(
    exchange: Exchange,
    index: int,
    delta: ChoiceDelta,
    logprobs: ChoiceLogprobs | None = None,
    reason: Any = None,
) -> bytes:
    one = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)
    more: dict[str, Any] = {"usage": None} if exchange.body.with_usage else {}
    return event(
        ChatCompletionChunk(**exchange.head, object="chat.completion.chunk", choices=[one], **more)
    )
