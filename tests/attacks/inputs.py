"""Nasty prompts and options for one loaded model.

Right is an answer that keeps its own rules: ids as tokenizer.json says, each greedy token the
likeliest, no more tokens than allowed, no stop string in the text.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import encode_prompt

from . import bases, nasty, oracle
from .checkpoints import load
from .outcome import LIBRARY, ORACLE, Case, Outcome, attempt

OPTIONS = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    *("stop", "ignore_eos", "max_tokens", "stream", ""),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logits_processors", "prefill"),
    *("min_new_tokens", "logprobs", "top_logprobs", "n", "echo", "chat_template_kwargs"),
)
# Options with which a token need not be the likeliest.
CHANGING = ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")
CHANGING += ("logit_bias", "logits_processors", "min_new_tokens")
OF_MESSAGES = ("prefill", "chat_template_kwargs")
OTHER_VALUES = (
    *(numpy.float64(0.7), numpy.float32("nan"), numpy.int64(5), numpy.bool_(True), numpy.str_("a")),
    *(numpy.array(3), numpy.array([1, 2]), torch.tensor(4), torch.tensor([0.5]), torch.float32),
    *(1 + 2j, b"bytes", range(3), object(), Ellipsis, type, lambda: 1, {1, 2}, frozenset()),
    *(10**5000, -(10**5000), "\ud800", "9" * 5000, (), ("a", "b"), ["a", ""], [1], [None], {"a"}),
)
LIKELY = {
    "max_new_tokens": (1, 2, 5, 40),
    "temperature": (0, 0.0, 0.7, 1, 2.5, 1e-6, 1e9),
    "top_k": (0, 1, 5, 10**6),
    "top_p": (0.1, 0.9, 1, 1e-9),
    "min_p": (0, 0.05, 1),
    "repetition_penalty": (1, 1.3, 0.5, 100, 0.01),
    "seed": (None, 0, 1, 2**64 - 1),
    "stop": ("a", "\n", ["1", "2"], ("###",), " ", "é", "\x00", "x" * 10_000, None, []),
    "ignore_eos": (True, False),
    "presence_penalty": (0, 2, -2, 0.5),
    "frequency_penalty": (0, 2, -2, 1e-9),
    "logit_bias": ({}, None, {5: 100}, {"7": -100, 0: 0}, {679: 1}, {10**9: 1}, {-1: 1}, {5: 200}),
    "logits_processors": ((), [lambda ids, scores: scores], [lambda ids, scores: None], [print]),
    "prefill": ("", "Sure", " ", "\ud800", "<s>", "x" * 10_000),
    "min_new_tokens": (0, 1, 3, 10**6),
    "logprobs": (True, False),
    "top_logprobs": (0, 1, 20, 10**6),
    "n": (1, 2),
    "echo": (True, False),
    "chat_template_kwargs": ({}, None, {"enable_thinking": False}, {"messages": []}, {"a": {}}),
}


class Odd:
    """An object with a text that nobody wants to see."""

    def __repr__(self) -> str:
        return "odd\n\x1b[31m" + "!" * 3000

    __str__ = __repr__


class Failing:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __len__(self) -> int:
        raise RuntimeError("no len")


def text(rng: random.Random) -> str:
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(
            ["", " ", "\n", "\x00", "\ufeff", "\u202e", "\ud800", "a\udfff", "\x1b[2J"]
        )
    if kind == 1:
        return rng.choice(["a", "ab ", "é", "😀", "\n", "1", "<s>", "▁"]) * rng.choice(
            [100, 5000, 10**6]
        )
    if kind == 2:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 30)))
    if kind == 3:
        return "".join(map(chr, range(rng.choice([32, 160]))))
    if kind == 4:
        return (
            rng.choice(["<s>", "</s>", "<unk>", "<0x0A>", "<s></s>x", "### User:\n", "{{ 1 }}"]) * 3
        )
    return "".join(rng.choices(string.printable, k=rng.randrange(1, 60)))


def role(rng: random.Random) -> Any:
    odd = ("system", "tool", "", "USER", None, 3, "user\x1b[31m", ["user"])
    return rng.choice(["user"] * 4 + ["assistant"] * 3 + list(odd))


def message(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return rng.choice([None, "hello", 5, [], {}, {"role": "user"}, {"content": "x"}, Odd()])
    content: Any = text(rng)
    if rng.random() < 0.15:
        content = rng.choice([None, 3, b"x", ["a"], [{"type": "text", "text": "x"}], {}, Odd()])
    more = {"extra": Odd()} if rng.random() < 0.1 else {}
    return {"role": role(rng), "content": content, **more}


def conversation(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        roles = ("user", "assistant") * 3
        return [{"role": roles[i], "content": text(rng)} for i in range(rng.choice([1, 3]))]
    return [message(rng) for _ in range(rng.randrange(1, 6))]


def ids(rng: random.Random) -> Any:
    good = [rng.randrange(679) for _ in range(rng.choice([1, 3, 10, 27, 28, 29, 127, 128, 129]))]
    act = rng.randrange(8)
    if act == 0:
        good[rng.randrange(len(good))] = rng.choice([679, -1, 2**31, 2**63, 2**70, 10**400])
    if act == 1:
        good[rng.randrange(len(good))] = rng.choice(
            [None, 1.0, "1", True, [1], float("nan"), Odd()]
        )
    wrap: list[Callable[[Any], Any]] = [list, tuple, lambda x: [x], lambda x: [x, x]]
    wrap += [lambda x: {"input_ids": x}, lambda x: {"input_ids": [x], "attention_mask": [x]}]
    if act > 1:
        wrap += [torch.tensor, numpy.array, lambda x: torch.tensor([x]), lambda x: iter(x)]
        wrap += [lambda x: torch.tensor(x).float(), lambda x: torch.tensor([[x]]), bytearray]
        wrap += [lambda x: numpy.array(x, dtype=object), lambda x: torch.tensor(x).to("meta")]
        wrap += [lambda x: torch.tensor(x).to_sparse(), lambda x: numpy.array(x, dtype="uint16")]
    try:
        return rng.choice(wrap)(good)
    except ValueError:  # a bytearray of large numbers
        return good


def other(rng: random.Random) -> Any:
    odd = [
        None,
        0,
        1.5,
        True,
        b"",
        b"hi",
        [],
        (),
        {},
        [[]],
        [""],
        ["a", "b"],
        Odd(),
        Failing(),
        {1},
    ]
    odd += [{"input_ids": None}, {"input_ids": "abc"}, {"input_ids": {}}, Path("x"), [Failing()]]
    odd += [[None], range(5), range(0), torch.tensor([]), torch.tensor(5), numpy.array(5), "x" * 3]
    return rng.choice([*odd, *nasty.VALUES, *OTHER_VALUES])


PROMPTS: dict[str, tuple[Callable[[random.Random], Any], int]] = {
    "text": (text, 9),
    "conversation": (conversation, 6),
    "ids": (ids, 6),
    "other": (other, 3),
}


def options_for(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": rng.choice([1, 3, 8])}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        name = rng.choice(OPTIONS)
        if name in LIKELY and rng.random() < 0.6:
            options[name] = rng.choice(LIKELY[name])
        else:
            options[name] = rng.choice([*nasty.VALUES, *OTHER_VALUES, Odd(), Failing()])
    if options.get("top_logprobs"):
        options["logprobs"] = True
    if isinstance(options.get("top_k"), int) and rng.random() < 0.5:
        options["temperature"] = 0.8
    return options


def shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except Exception:
        return type(value).__name__


class Inputs:
    """Ask one model anything, in every way that the API has."""

    name = "inputs"

    def prepare(self, root: Path) -> None:
        self.folders = {name: bases.make_base(name, root / name) for name in ("mistral", "llama")}
        self.models = {
            name: load(folder, "int4", root / "cache") for name, folder in self.folders.items()
        }

    def run(self, case: Case) -> Outcome:
        rng = random.Random(f"{self.name}/{case.seed}")
        name = rng.choice(list(self.models))
        model = self.models[name]
        kind = rng.choices(list(PROMPTS), [often for _, often in PROMPTS.values()])[0]
        prompt, options = PROMPTS[kind][0](rng), options_for(rng)
        way = rng.choice(["generate", "generate", "stream", "conversation"])
        case.done += [name, way, f"{kind}: {shown(prompt)}"]
        case.done += [f"{key} = {shown(value)}" for key, value in options.items()]
        case.begins(LIBRARY)
        answer, failed = attempt(lambda: WAYS[way](model, prompt, options))
        case.begins(ORACLE)
        if failed is not None:
            return failed
        said = (
            None
            if way == "conversation"
            else rules_broken(model, self.folders[name], prompt, options, *answer)
        )
        return Outcome("right") if said is None else Outcome("wrong", said.split(":")[0], said)


def generate(model: Any, prompt: Any, options: dict[str, Any]) -> tuple[str, list[int]]:
    reply = model.generate(prompt, **options)
    if isinstance(reply, list):
        assert len(reply) == options["n"]
        reply = reply[-1]
    return reply.text, list(reply.token_ids)


def stream(model: Any, prompt: Any, options: dict[str, Any]) -> tuple[str, list[int]]:
    pieces = list(model.stream(prompt, **options))
    return "".join(piece.text for piece in pieces), [piece.token_id for piece in pieces]


def converse(model: Any, prompt: Any, options: dict[str, Any]) -> tuple[str, list[int]]:
    """The prompt as what the user says, twice, and options for the whole conversation."""
    talk = model.conversation(**options)
    talk.say(prompt)
    reply = talk.say(prompt)
    return reply.text, list(reply.token_ids)


WAYS = {"generate": generate, "stream": stream, "conversation": converse}


def rules_broken(
    model: Any, folder: Path, prompt: Any, options: dict[str, Any], said: str, new: list[int]
) -> str | None:
    """Which rule an answer breaks; None when it keeps all."""
    given = GenerationOptions.of({name: options[name] for name in OF_MESSAGES if name in options})
    size = model.architecture.vocab_size
    before = list(encode_prompt(prompt, model.tokenizer, size, options=given).ids)
    if isinstance(prompt, str) and before != oracle.plain_tokenizer(folder).encode(prompt).ids:
        return "ids: not those of tokenizer.json"
    if not new or len(new) > options["max_new_tokens"]:
        return f"length: {len(new)} tokens"
    stops = options.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop in said and not options.get("echo") and not options.get("min_new_tokens"):
            return f"stop: {stop!r} is in {said!r}"
    if not isinstance(said, str) or "\ud800" in said:
        return f"text: {said!r}"
    if any(name in options for name in CHANGING):
        return None
    logits = model.decoder.forward([*before, *new[:-1]], model.decoder.new_cache(), all_logits=True)
    for place, token in enumerate(new, len(before) - 1):
        if float(logits[place].max() - logits[place, token]) > 1e-3:
            return f"greedy: token {place - len(before) + 1} is not the likeliest"
    return None
