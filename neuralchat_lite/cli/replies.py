"""What `generate` and `chat` share: loading the model, and showing a reply as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neuralchat_lite.cli.options import LoadingGroup, WeightsGroup
from neuralchat_lite.cli.terminal import warn, write
from neuralchat_lite.engines import NATIVE
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.files.progress_bar import ProgressBar

if TYPE_CHECKING:
    from neuralchat_lite import Model, Piece, Timings, WeightOnlyQuantConfig

# finish_reason -> what is said of an answer that could have gone on
CUT = {
    "length": "(The answer was cut after {new} tokens: --max-new-tokens allows more.)",
    "context": "(The answer was cut, since the context is full after {all} tokens: "
    "--context-length may allow more.)",
}


def load_model(
    model: str, weights: WeightsGroup, loading: LoadingGroup, kv_memory: int | None = None
) -> Model:
    from neuralchat_lite.api import load

    asked = asdict(loading)
    adapters = asked.pop("adapter") or ()
    with ProgressBar(warn) as progress:
        loaded = load(
            model,
            weights.config(),
            adapters=adapters,
            default_compute_dtype="auto",
            progress=progress.update,
            kv_memory=kv_memory,
            **asked,
        )
    if weights.compute_dtype in (None, "auto") and loading.engine == NATIVE and loaded.config:
        warn(activations_text(loaded.config))
    return loaded


def load_draft(model: Model, options: dict[str, Any], loading: LoadingGroup) -> dict[str, Any]:
    """The options with the draft model that they name, loaded beside the model; others stay.

    It is quantized as by default, whatever the model is. Raises ConfigError when its tokens are
    others.
    """
    from neuralchat_lite.api import load
    from neuralchat_lite.generation.speculation import DRAFTS
    from neuralchat_lite.model import check_draft

    name = options.get("draft")
    if name is None or name in DRAFTS:
        return options
    with ProgressBar(warn) as progress:
        draft = load(
            name,
            default_compute_dtype="auto",
            threads=loading.threads,
            progress=progress.update,
        )
    check_draft(draft, model.tokenizer)
    return {**options, "draft": draft}


def activations_text(config: WeightOnlyQuantConfig) -> str:
    """Which precision the activations have, where the command line has named none."""
    if config.compute_dtype != "auto":
        said = f"{config.compute_dtype}, as the quantized folder says"
        return f"Activations: {said} (--compute-dtype overrides it)"
    taken = ", ".join(
        f"{compute} for {name} weights" for name, compute in config.computes().items()
    )
    return f"Activations: {taken} (--compute-dtype bf16 and the like override it)"


def warn_without_template(model: Model) -> None:
    if model.tokenizer.chat_template is None:
        warn("The model has no chat template: messages take neural-chat's form.")


def show(pieces: Iterator[Piece], put: Callable[[str], None] | None = None) -> Timings | None:
    """Write the text as it comes, and say it on stderr when a limit has cut it. Returns the timings
    of the last piece, if there was one.

    put: writes it; `write` when None
    """
    put = put or write
    last, text = None, ""
    try:
        for last in pieces:
            put(last.text)
            text = last.text or text
    finally:
        if not text.endswith("\n"):
            put("\n")
    if last is None:
        return None
    if last.finish_reason in CUT and last.timings:
        made = last.timings
        warn(
            CUT[last.finish_reason].format(
                new=made.new_tokens, all=made.prompt_tokens + made.new_tokens
            )
        )
    return last.timings


def timings_text(timings: Timings) -> str:
    """One line on what a reply cost."""
    parts = [
        f"{timings.new_tokens} tokens",
        f"first after {timings.time_to_first_token_s * 1000:.0f} ms "
        f"({timings.prompt_tokens - timings.cached_tokens} of {timings.prompt_tokens} "
        "prompt tokens fed)",
    ]
    if timings.time_per_token_s and timings.tokens_per_second and timings.bytes_per_second:
        parts.append(
            f"then {timings.time_per_token_s * 1000:.1f} ms each "
            f"({timings.tokens_per_second:.1f} tokens/s)"
        )
        parts.append(
            f"{size_text(timings.bytes_per_token)} a token, "
            f"{size_text(timings.bytes_per_second)}/s read"
        )
    if timings.load_s is not None:
        parts.append(f"loaded in {timings.load_s:.2f} s")
    return "; ".join(parts)
