"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Sampling
from neuralchat_lite.server.requests.forms import Formed


class CompletionRequest(Sampling, Formed):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(gt=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

    unsupported: ClassVar = {
        "suffix": (("",), "models here write on; leave it out"),
        "best_of": ((1,), "use n"),
        "prompt_logprobs": ((), "use echo with logprobs"),
    }

    def prompts(self) -> list[Any]:
        """Each a text or token ids."""
        given: Any = self.prompt
        several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        if not isinstance(given, str) and not given:
            raise bad_request("the prompt is an empty list: give a text or token ids", "prompt")
        return list(given) if several else [given]
