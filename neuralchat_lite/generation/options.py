"""How to choose tokens and when to stop: one option, one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.option_rules import FORMS, RULES, LogitsProcessor
from neuralchat_lite.values import plain, shown, suggestion

# What other libraries call our options.
OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "num_tokens": "max_new_tokens",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "repeat_penalty": "repetition_penalty",
    "do_sample": "temperature",
    "random_state": "seed",
    "min_tokens": "min_new_tokens",
    "min_length": "min_new_tokens",
    "num_return_sequences": "n",
    "best_of": "n",
    "sequence_bias": "logit_bias",
    "logits_processor": "logits_processors",
    "output_scores": "logprobs",
    "output_logits": "logprobs",
    "return_full_text": "echo",
    "continue_final_message": "prefill",
    "enable_thinking": "chat_template_kwargs",
    "tools": "chat_template_kwargs",
    "guided_json": "json_schema",
    "response_format": "json_schema",
    "response_model": "json_schema",
    "output_schema": "json_schema",
    "json_mode": "json_object",
    "guided_regex": "regex",
    "pattern": "regex",
    "guided_grammar": "grammar",
    "ebnf": "grammar",
    "guided_choice": "choice",
}
FILTERS = ("top_k", "top_p", "min_p")  # of sampling
FORMS_OF_ANSWERS = ("json_schema", "json_object", "regex", "grammar", "choice")
# What would cut an answer short of its form, or let it go on after its end.
AGAINST_A_FORM = ("stop", "min_new_tokens", "ignore_eos")


SEEDS = 2**64


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keyword arguments, for type checkers and editors."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    logits_processors: Sequence[LogitsProcessor]
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    draft: Any
    n: int
    prefill: str
    echo: bool
    chat_template_kwargs: Mapping[str, Any] | None
    json_schema: Any
    json_object: bool
    regex: str | None
    grammar: str | None
    choice: Sequence[str] | None


@dataclass(frozen=True)
class GenerationOptions:
    """How to choose tokens and when to stop. Raises ConfigError for a value that is not allowed.

    max_new_tokens: tokens to generate at most
    min_new_tokens: so many tokens come before a token or a text may end the answer
    temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled
    top_k, top_p, min_p: which tokens may be sampled; they need a temperature
    repetition_penalty: divides the (positive) logits of tokens that have occurred
    presence_penalty: taken from the logits of tokens that the answer has
    frequency_penalty: taken from them as often as the answer has them
    logit_bias: token id -> what is added to its logit
    logits_processors: each is called with ids [1, n] and scores [1, vocab] and returns scores
    seed: makes sampling repeatable; None draws a new one from the system
    stop: texts that end the answer and are not part of it
    ignore_eos: go on after the end-of-text token
    logprobs: give each token's log-probability, in the model's own distribution
    top_logprobs: give the likeliest tokens too, as many as this
    draft: guess several tokens at once, which changes no answer: "ngram" what came after the same
        last tokens before, a model (from `load`, with the same vocabulary) what it finds likeliest
    n: answers to one prompt; answer i has the seed `seed + i`
    prefill: how the answer to messages begins; the model goes on from there
    echo: begin the text with the prompt, or where that is messages with `prefill`
    chat_template_kwargs: variables of the chat template, such as {"enable_thinking": False}
    json_schema: the answer is JSON that a schema allows: a dictionary, its JSON text, or a pydantic
        class. It and the next four need the extra "structured"; one of them at most
    json_object: the answer is a JSON object
    regex: the answer as a whole matches a regular expression (Rust's syntax, without look-around)
    grammar: the answer is a text of a grammar, in the Lark form of llguidance
    choice: the answer is one of these texts

    Scalars of numpy and torch are accepted as the numbers that they are.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logits_processors: Sequence[LogitsProcessor] = ()
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    draft: Any = None
    n: int = 1
    prefill: str = ""
    echo: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    json_schema: Any = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, (rule, holds) in RULES.items():
            value = FORMS.get(name, plain)(getattr(self, name))
            if not holds(value):
                raise ConfigError(f"{name} must be {rule}, got {shown(value)}")
            object.__setattr__(self, name, value)
        self.refuse_idle()
        self.refuse_against_form()
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens must be at most max_new_tokens, got {self.min_new_tokens} and "
                f"{self.max_new_tokens}: lower the one or raise the other"
            )

    def refuse_idle(self) -> None:
        """Raise ConfigError for options that would have no effect beside the others."""
        filters = {name: getattr(self, name) for name in FILTERS}
        idle = [name for name, value in filters.items() if value != getattr(type(self), name)]
        if idle and self.temperature == 0:
            raise ConfigError(
                f"{', '.join(idle)} would have no effect with temperature 0 (greedy): "
                "set a temperature > 0, e.g. temperature=0.7, or leave it out"
            )
        if self.n > 1 and self.temperature == 0:
            raise ConfigError(
                f"n={self.n} would give the same answer {self.n} times with temperature 0 "
                "(greedy): set a temperature > 0, e.g. temperature=0.7, or leave it out"
            )
        if self.top_logprobs and not self.logprobs:
            raise ConfigError(
                f"top_logprobs={self.top_logprobs} would have no effect without logprobs: give "
                "logprobs=True too"
            )

    @property
    def form(self) -> str | None:
        """The name of the option that says which form the answer has; None without one."""
        given = [name for name in FORMS_OF_ANSWERS if getattr(self, name) not in (None, False)]
        return given[0] if given else None

    def refuse_against_form(self) -> None:
        """Raise ConfigError for two forms of one answer, and for what could break one."""
        given = [name for name in FORMS_OF_ANSWERS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} both say which form the answer has: give one of them"
            )
        against = [name for name in AGAINST_A_FORM if getattr(self, name)]
        if given and against:
            raise ConfigError(
                f"{', '.join(against)} could break the form that {given[0]} gives the answer, "
                "and that says itself where it may end: leave one of them out"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """From keyword arguments. Raises ConfigError that lists the names for an unknown one."""
        check_names(options)
        return cls(**options)

    def but(self, options: Mapping[str, Any]) -> GenerationOptions:
        """These, with some changed by keyword arguments. Raises ConfigError as `of` does."""
        check_names(options)
        return replace(self, **options) if options else self


def options_of_answers(options: GenerationOptions) -> list[GenerationOptions]:
    """For each of the `n` answers its options: answer i has the seed `seed + i`, or without a seed
    one from the system."""
    if options.n == 1:
        return [options]
    seeds = [
        None if options.seed is None else (options.seed + index) % SEEDS
        for index in range(options.n)
    ]
    return [replace(options, n=1, seed=seed) for seed in seeds]


def refuse_several_answers(options: GenerationOptions) -> None:
    """Raise ConfigError where one answer alone can be given."""
    if options.n > 1:
        raise ConfigError(
            f"n={options.n} asks for several answers, and only generate gives several: call that, "
            "or leave it out"
        )


def without_idle_filters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without the filters of sampling, if they ask for the likeliest token."""
    greedy = options.get("temperature", 0) == 0
    return {name: value for name, value in options.items() if not (greedy and name in FILTERS)}


def check_names(options: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(GenerationOptions)]
    unknown = sorted(set(options) - set(names))
    if unknown:
        said = [f"{name}{meant(name, names)}" for name in unknown]
        raise ConfigError(
            f"unknown generation option {', '.join(said)}: expected {', '.join(names)}"
        )


def meant(name: str, names: list[str]) -> str:
    known = OTHER_NAMES.get(name.lower())
    return f" (did you mean {known!r}?)" if known else suggestion(name, names)
