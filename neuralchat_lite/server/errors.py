"""Errors as answers, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from neuralchat_lite.errors import (
    ConfigError,
    ContextError,
    NeuralchatError,
    PromptError,
    ResourceError,
    visible,
)

log = logging.getLogger("neuralchat_lite.server")
INVALID = "invalid_request_error"
UNSUPPORTED = "unsupported_field"  # what the models of requests call such an error
# status -> the type that OpenAI gives errors of it
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
LONGEST = 1000  # characters of a message
# A client that tries again would compute the same again, or get the same refusal.
NO_RETRY = {"x-should-retry": "false"}


class RequestError(Exception):
    """A request that gets no answer. param: the field that it is about"""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    return RequestError(400, message, param=param, code=code)


def as_request_error(error: BaseException) -> RequestError:
    """What to tell the client. An error inside is logged, without what the request said."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextError):  # clients look for OpenAI's code, and shorten the prompt
        return bad_request(str(error), code="context_length_exceeded")
    if isinstance(error, PromptError | ConfigError):
        return bad_request(str(error))
    if isinstance(error, ResourceError):
        return RequestError(503, str(error))
    if isinstance(error, RequestValidationError):
        return of_validation(error.errors())
    if isinstance(error, HTTPException):
        return RequestError(error.status_code, str(error.detail), headers=error.headers)
    log_internal(error)
    said = ": the model or its engine failed" if isinstance(error, NeuralchatError) else ""
    return RequestError(500, f"internal error{said}; the server's log says where")


def log_internal(error: BaseException) -> None:
    """Where it happened. The message may quote a request, so the log has the type alone."""
    places = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error, %s:\n%s", type(error).__name__, places)


def of_validation(found: Any) -> RequestError:
    """The first thing that is wrong with a body, by the name of its field."""
    first = found[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    kind = first["type"]
    if kind == "extra_forbidden":
        message = f"the field {place!r} is unknown here: leave it out"
    elif kind == "missing":
        message = f"the field {place!r} is missing: give it" if place else "the body is missing"
    elif kind == UNSUPPORTED:
        place, message = first["ctx"]["field"], first["msg"]
    elif kind == "json_invalid":
        place, message = "", "the body is not valid JSON"
    elif kind in ("model_attributes_type", "model_type", "dict_type") and not place:
        message = "the body must be a JSON object, with the header Content-Type: application/json"
    else:
        said = first["msg"].removeprefix("Value error, ")
        message = f"{place}: {said}" if place else said
    return bad_request(message, place or None)


def openai_body(error: RequestError) -> dict[str, Any]:
    text = visible(error.message.encode("utf-8", "backslashreplace").decode())
    param = error.param and error.param.encode("utf-8", "backslashreplace").decode()[:200]
    return {
        "error": {
            "message": text if len(text) <= LONGEST else f"{text[:LONGEST]}...",
            "type": TYPES.get(error.status, INVALID),
            "param": param,
            "code": error.code,
        }
    }


def anthropic_body(error: RequestError) -> dict[str, Any]:
    """The form of /v1/messages."""
    said = openai_body(error)["error"]
    kind = {"server_error": "api_error", "timeout_error": "api_error"}.get(
        said["type"], said["type"]
    )
    return {"type": "error", "error": {"type": kind, "message": said["message"]}}


def body_for(path: str, error: RequestError) -> dict[str, Any]:
    return (anthropic_body if path.startswith("/v1/messages") else openai_body)(error)


def response_for(path: str, error: RequestError) -> JSONResponse:
    headers = error.headers
    if error.status not in (429, 503):
        headers = {**NO_RETRY, **headers}
    return JSONResponse(body_for(path, error), error.status, headers)


def add_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        return response_for(request.url.path, as_request_error(error))

    for kind in (RequestError, NeuralchatError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
