"""/v1/chat/completions: messages in, the assistant's next one out, whole or as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

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
from neuralchat_lite.server.answers import chat_logprobs, finish_reason
from neuralchat_lite.server.calling import refuse_lost_calls
from neuralchat_lite.server.desk import Answers, Asked, desks_of
from neuralchat_lite.server.events import DONE, PING, event
from neuralchat_lite.server.exchange import Exchange
from neuralchat_lite.server.requests.chat import ChatRequest
from neuralchat_lite.server.requests.options import of_each_answer, options_of

router = APIRouter()


class Chat(Exchange):
    def __init__(self, request: Request, body: ChatRequest) -> None:
        desk = desks_of(request).of(body.model)
        desk.refuse_long_list(len(body.messages), "messages")
        super().__init__(request, body, desk, 1, "chatcmpl", "chat.completion")
        self.calling = body.calling()

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


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    return await Chat(request, body).respond(stream, whole)


async def whole(exchange: Chat) -> ChatCompletion:
    return ChatCompletion(**await exchange.whole(partial(choice, exchange)))


def choice(exchange: Chat, answers: Answers, index: int, pieces: list[Piece]) -> Choice:
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


async def stream(exchange: Chat) -> AsyncGenerator[bytes]:
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
    cost = exchange.cost()
    if exchange.body.with_usage:
        yield event(ChatCompletionChunk(**part_head(exchange), choices=[], **cost))
    yield DONE


def chunk(
    exchange: Chat,
    index: int,
    delta: ChoiceDelta,
    logprobs: ChoiceLogprobs | None = None,
    reason: Any = None,
) -> bytes:
    one = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)
    more: dict[str, Any] = {"usage": None} if exchange.body.with_usage else {}
    return event(ChatCompletionChunk(**part_head(exchange), choices=[one], **more))


def part_head(exchange: Chat) -> dict[str, Any]:
    return {**exchange.head, "object": "chat.completion.chunk"}
