"""/v1/embeddings: a vector for each text."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types import CreateEmbeddingResponse, Embedding
from openai.types.create_embedding_response import Usage

from neuralchat_lite.generation.texts import encode_texts, is_one
from neuralchat_lite.server.cost import Cost
from neuralchat_lite.server.desk import Desk, desks_of
from neuralchat_lite.server.requests.texts import EmbeddingRequest

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    desk = desks_of(request).of(body.model)
    given: Any = [body.input] if is_one(body.input) else body.input
    desk.refuse_long_list(len(given), "input")
    tokens, vectors = await desk.read(request, lambda: embed(desk, given, body))
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    Cost(desk.name, tokens).note(request)
    if body.encoding_format == "base64":
        # Little-endian fp32, as OpenAI's own client asks for it and reads it.
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        return JSONResponse(
            {"object": "list", "data": data, "model": desk.name, "usage": usage.model_dump()}
        )
    answer = CreateEmbeddingResponse(
        object="list",
        model=desk.name,
        usage=usage,
        data=[
            Embedding(object="embedding", index=index, embedding=vector.tolist())
            for index, vector in enumerate(vectors)
        ],
    )
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def embed(desk: Desk, texts: list[Any], body: EmbeddingRequest) -> tuple[int, Any]:
    """(tokens that were read, vectors [n, hidden] fp32)"""
    model = desk.model
    ids = encode_texts(
        texts, model.decoder, model.tokenizer, model.decoder.context_length, "embedded"
    )
    vectors = model.embed([list(one) for one in ids], body.pooling, body.normalize)
    return sum(map(len, ids)), vectors
