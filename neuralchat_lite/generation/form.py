"""The form of an answer: a schema, a regular expression, a grammar or a choice, and which tokens
it lets come next.

llguidance follows the grammar and finds the tokens, a bit of each in the vocabulary. The model
chooses among them. An end is allowed exactly where the grammar may end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.deep_stack import with_stack
from neuralchat_lite.generation.grammar_cost import too_costly
from neuralchat_lite.generation.options import GenerationOptions

# Between the parts of JSON: a space, or a new line and its indentation. Any whitespace would let a
# model that is unsure write spaces without end. A schema may not ask for less than it says.
JSON_RULES = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    # One spelling of each letter. Else a field could come again, spelled with escapes, with a value
    # that the schema does not allow, and readers take the second.
    "json_allowed_escapes": '"\\bfnrt',
    "lenient": False,
    "coerce_one_of": False,
}
SHOWN_ERROR = 300  # characters
# llguidance calls itself for each reference to another rule or schema. A chain of them took up to
# 430 bytes of stack for each character that it was written with.
LONGEST = 1 << 20  # characters of a grammar
STACK_OF_CHARACTER = 1 << 10  # bytes
LEAST_STACK = 16 << 20
# tokenizer -> (size of the vocabulary -> what llguidance knows of it, which takes 0.2 s)
vocabularies: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()
building = threading.Lock()


def llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "json_schema, json_object, regex, grammar and choice need the package llguidance, and "
            "it is not installed: pip install 'neuralchat_lite[structured]'"
        ) from None
    return llguidance


def of_schema(schema: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(schema, allow_nan=False)
        return str(llguidance().LLMatcher.grammar_from_json_schema(text, overrides=JSON_RULES))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"json_schema is no JSON ({short(str(error))}): give what json.dumps can write"
        ) from None


def of_choice(texts: Collection[str]) -> str:
    # Strings of Lark have JSON's escapes.
    options = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return str(llguidance().LLMatcher.grammar_from_lark(f"start: {options}"))


# option -> what makes a grammar of llguidance out of its value
GRAMMARS: dict[str, Callable[[Any], str]] = {
    "json_schema": of_schema,
    "json_object": lambda _: of_schema({"type": "object"}),
    "regex": lambda text: str(llguidance().LLMatcher.grammar_from_regex(text)),
    "grammar": lambda text: str(llguidance().LLMatcher.grammar_from_lark(text)),
    "choice": of_choice,
}


def form_of(
    options: GenerationOptions, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]
) -> Form | None:
    """The form that options ask for; None where they ask for none.

    ends: ids that end the answer

    Raises ConfigError for what cannot be honoured, and names the part.
    """
    if options.form is None:
        return None
    name = options.form
    words = vocabulary_of(tokenizer, vocab_size)
    grammar = GRAMMARS[name](getattr(options, name))
    if len(grammar) > LONGEST:
        raise ConfigError(
            f"{name} is a grammar of {len(grammar)} characters, and {LONGEST} are allowed: "
            "simplify it"
        )
    if complaint := too_costly(grammar, options.grammar or ""):
        raise ConfigError(f"{name} has {complaint}")
    stack = LEAST_STACK + STACK_OF_CHARACTER * len(grammar)
    complaints, matcher = with_stack(stack, lambda: compiled(grammar, words))
    if complaints:  # a warning is about a part that would be left out
        raise ConfigError(
            f"{name} cannot be honoured: {short('; '.join(complaints))}. Change that part, or "
            "leave it out"
        )
    return Form(name, matcher, vocab_size, ends)


def compiled(grammar: str, words: Any) -> tuple[list[str], Any]:
    """(what is wrong with a grammar, and what follows it)"""
    matcher = llguidance().LLMatcher
    _, complaints = matcher.validate_grammar_with_warnings(grammar, words)
    return complaints, None if complaints else matcher(words, grammar, log_level=0)


def vocabulary_of(tokenizer: Any, vocab_size: int) -> Any:
    """What llguidance knows of a tokenizer; made once. Raises ConfigError for one that it cannot
    read."""
    make = llguidance().LLTokenizer
    with building:
        known = vocabularies.setdefault(tokenizer, {})
        if vocab_size not in known:
            try:
                size = max(vocab_size, len(tokenizer))
                ends = tokenizer.eos_token_id
                known[vocab_size] = make(described(tokenizer), n_vocab=size, eos_token=ends)
            except Exception as error:  # of any type, from the parser of another language
                raise ConfigError(
                    "the form of an answer needs a tokenizer that llguidance can read, and not "
                    f"{type(tokenizer).__name__} ({short(str(error))}): give the model a "
                    "tokenizer.json"
                ) from None
        return known[vocab_size]


def described(tokenizer: Any) -> str:
    """A tokenizer as JSON. Its special tokens are those that have no text in an answer."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    found |= {"truncation": None, "padding": None}
    special = frozenset(tokenizer.all_special_ids)
    found["added_tokens"] = [
        {**token, "special": token["special"] or token["id"] in special}
        for token in found["added_tokens"]
    ]
    return json.dumps(found)


class Form:
    """Where an answer stands in its grammar. One thread at a time uses it.

    ended: whether nothing may follow
    """

    def __init__(self, name: str, matcher: Any, vocab_size: int, ends: Collection[int]) -> None:
        """name: of the option"""
        self.name, self.matcher, self.vocab_size = name, matcher, vocab_size
        self.ends = sorted(end for end in ends if end < vocab_size)
        self.ended = False
        self.check()

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of each token whether it may come next, [vocab]."""
        packed = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self.check()
        found = np.unpackbits(packed, count=self.vocab_size, bitorder="little").view(np.bool_)
        found[self.ends] = self.matcher.is_accepting()
        return found

    def of_allowed(self, scores: Tensor) -> Tensor:
        """Scores [1, vocab] with -inf for what may not come next. Raises ConfigError where nothing
        is left."""
        found = np.where(self.allowed(), scores.numpy(), np.float32("-inf"))
        if not np.isfinite(found).any():
            raise ConfigError(
                f"no token is left that {self.name} allows here: let the logits processors allow "
                "one, or use characters that the vocabulary has"
            )
        return torch.from_numpy(found)

    def take(self, token: int) -> None:
        """The answer goes on with a token. Raises ConfigError for one that is not allowed."""
        self.matcher.consume_token(token)
        self.check()
        self.ended = bool(self.matcher.is_stopped())

    def forced(self) -> list[int]:
        """The tokens that must come next, where there is no choice."""
        # Some vocabularies have bytes among their special tokens, which have no text.
        return [] if self.ended else self.beginning(list(self.matcher.compute_ff_tokens()))

    def beginning(self, tokens: list[int]) -> list[int]:
        """As many tokens from the first as may come next."""
        return tokens[: self.matcher.validate_tokens(tokens)] if tokens else tokens

    def check(self) -> None:
        if self.matcher.is_error():
            raise ConfigError(
                f"{self.name} cannot be followed further ({short(self.matcher.get_error())}): "
                "simplify it"
            )


def short(text: str) -> str:
    """An error of llguidance in one line: the first lines say what is wrong."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_ERROR else f"{line[:SHOWN_ERROR]}..."
