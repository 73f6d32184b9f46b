"""/tokenize, /detokenize and /apply-template: what becomes of a text before it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from neuralchat_lite.generation.prompt import (
    check_ids,
    check_variables,
    checked_messages,
    render_turns,
)
from neuralchat_lite.generation.text import Detokenizer
from neuralchat_lite.server.desk import Desk, desks_of
from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.chat import ChatMessage
from neuralchat_lite.server.requests.texts import (
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)

router = APIRouter()
LONGEST_TEXT = 1 << 20  # characters


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> JSONResponse:
    desk = desks_of(request).of(body.model)
    tokenizer = desk.model.tokenizer

    def work() -> dict[str, Any]:
        if body.messages is None:
            text, special = body.prompt if body.content is None else body.content, body.special
        else:
            text = rendered(
                desk, body.messages, body.add_generation_prompt, body.variables(tokenizer)
            )
            special = False
        refuse_long_text(text or "")
        ids = tokenizer.encode(text or "", add_special_tokens=special)
        found: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": desk.model.decoder.context_length,
            "tokens": ids,
        }
        if body.return_token_strs:
            found["token_strs"] = [tokenizer.convert_ids_to_tokens(one) for one in ids]
        if body.with_pieces:
            # Decoded alone, a token would lose the space that it begins with.
            names = Detokenizer(tokenizer)
            found["tokens"] = [{"id": one, "piece": piece_of(names, one)} for one in ids]
        return found

    return JSONResponse(await desk.in_thread(work))


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> JSONResponse:
    desk = desks_of(request).of(body.model)
    text = await desk.in_thread(lambda: text_of(desk, body.tokens))
    return JSONResponse({"prompt": text, "content": text})


@router.post("/apply-template")
async def apply_template(request: Request, body: TemplateRequest) -> JSONResponse:
    desk = desks_of(request).of(body.model)
    tokenizer = desk.model.tokenizer
    text = await desk.in_thread(
        lambda: rendered(desk, body.messages, body.add_generation_prompt, body.variables(tokenizer))
    )
    return JSONResponse({"prompt": text})


def refuse_long_text(text: str) -> None:
    """Raise RequestError. Tokenizing takes 250 bytes of memory and 1 us for each character."""
    if len(text) > LONGEST_TEXT:
        raise bad_request(
            f"the text has {len(text)} characters, and {LONGEST_TEXT} are tokenized at once: send "
            "it in parts"
        )


def piece_of(names: Detokenizer, token: int) -> str | list[int]:
    """The text of a token; of a part of a character the bytes, as llama.cpp has it."""
    known, name = names.bytes_of(token), names.name(token)
    return name if known is None or known == name.encode() else list(known)


def text_of(desk: Desk, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    checked = check_ids(list(ids), desk.model.architecture.vocab_size)
    return desk.model.tokenizer.decode(
        list(checked), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def rendered(
    desk: Desk, given: list[ChatMessage], asks: bool, variables: dict[str, Any] | None
) -> str:
    """Raises RequestError, PromptError or ConfigError."""
    desk.refuse_long_list(len(given), "messages")
    tokenizer = desk.model.tokenizer
    check_variables(variables or {}, tokenizer)
    messages = checked_messages([message.as_message() for message in given], tokenizer)
    return render_turns(messages, tokenizer, asks=asks, variables=variables)
