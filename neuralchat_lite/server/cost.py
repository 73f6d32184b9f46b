"""What an answer has cost, for the line of the log and for traces."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True)
class Cost:
    """new_tokens: None where there is no answer, as for embeddings
    first_token_s: seconds to the first token of the first answer; None where there is none
    """

    model: str
    prompt_tokens: int
    new_tokens: int | None = None
    first_token_s: float | None = None

    def note(self, request: Request) -> None:
        request.scope["state"]["cost"] = self

    def line(self) -> str:
        said = f" prompt_tokens={self.prompt_tokens}"
        return said if self.new_tokens is None else f"{said} new_tokens={self.new_tokens}"

    def attributes(self) -> dict[str, str | int | float]:
        """OpenTelemetry's names for generative AI, and vLLM's for what these lack."""
        found: dict[str, str | int | float | None] = {
            "gen_ai.response.model": self.model,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.new_tokens,
            "gen_ai.latency.time_to_first_token": self.first_token_s,
        }
        return {name: value for name, value in found.items() if value is not None}
