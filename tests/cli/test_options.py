"""The options that commands share: each reaches what it is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.cli.chat import chat
from neuralchat_lite.cli.generate import generate
from neuralchat_lite.cli.options import WeightsGroup, pairs, with_groups
from neuralchat_lite.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]
Say = Callable[..., None]


class Recorder:
    """Stands for a model: keeps what it was asked, and answers nothing."""

    folder = Path("/nowhere")

    class tokenizer:
        chat_template = "its own"

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def stream(self, prompt: Any, **options: Any) -> Any:
        self.asked |= {"prompt": prompt, **options}
        return iter(())

    def conversation(self, system: str | None, **options: Any) -> Any:
        self.asked |= {"system": system, **options}
        return self

    def reset(self) -> None:
        pass


WEIGHT_OPTIONS = {
    "--weight-dtype": ("weight_dtype", "int8"),
    "--group-size": ("group_size", 64),
    "--scheme": ("scheme", "asym"),
    "--scale-dtype": ("scale_dtype", "bf16"),
    "--compute-dtype": ("compute_dtype", "fp32"),
}
LOAD_OPTIONS = {
    "--threads": ("threads", 3),
    "--context-length": ("context_length", 77),
    "--kv-cache-dtype": ("kv_cache_dtype", "int8"),
    "--revision": ("revision", "v2"),
}
GENERATION_OPTIONS = {
    "--max-new-tokens": ("max_new_tokens", 11),
    "--stop": ("stop", ("END",)),
    "--temperature": ("temperature", 0.5),
    "--top-k": ("top_k", 7),
    "--top-p": ("top_p", 0.25),
    "--min-p": ("min_p", 0.125),
    "--repetition-penalty": ("repetition_penalty", 1.5),
    "--presence-penalty": ("presence_penalty", 0.5),
    "--frequency-penalty": ("frequency_penalty", -0.5),
    "--min-new-tokens": ("min_new_tokens", 3),
    "--draft": ("draft", "ngram"),
    "--seed": ("seed", 9),
}


def spelled(*tables: dict[str, tuple[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """The arguments of a command line, and what they should become."""
    arguments, wanted = [], {}
    for table in tables:
        for flag, (name, value) in table.items():
            arguments += [flag, str(value[0] if isinstance(value, tuple) else value)]
            wanted[name] = value
    return arguments, wanted


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_every_option_reaches_what_it_is_for(
    run: Run, command: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded = Recorder(), {}

    def load(name: str, config: Any, *, progress: Any, **more: Any) -> Recorder:
        loaded.update(more, model=name, config=config)
        return model

    monkeypatch.setattr("neuralchat_lite.api.load", load)
    arguments, wanted = spelled(WEIGHT_OPTIONS, LOAD_OPTIONS, GENERATION_OPTIONS)
    say("Hello")
    prompt = ["-p", "Hello", "--chat"] if command == "generate" else []
    code, _, err = run(command, "some/model", *prompt, "--system", "Be kind.", *arguments)
    assert code == 0, err
    assert loaded["model"] == "some/model"
    assert loaded["config"] == spelled(WEIGHT_OPTIONS)[1]
    assert {name: loaded[name] for _, (name, _) in LOAD_OPTIONS.items()} == spelled(LOAD_OPTIONS)[1]
    for _, (name, value) in GENERATION_OPTIONS.items():
        assert model.asked[name] == value, name
    system = {"role": "system", "content": "Be kind."}
    if command == "generate":
        assert model.asked["prompt"] == [system, {"role": "user", "content": "Hello"}]
    else:
        assert model.asked["system"] == "Be kind."
    assert set(wanted) == {*loaded, *model.asked} & set(wanted) | {
        name for name, _ in WEIGHT_OPTIONS.values()
    }


def option_names(command: Callable[..., None]) -> set[str]:
    return set(inspect.signature(command).parameters)


def test_generate_and_chat_have_the_same_options_but_for_the_prompt() -> None:
    assert option_names(generate) - option_names(chat) == {
        "prompt",
        "prompt_option",
        "chat",
        "raw",
        "prefill",
    }
    assert option_names(chat) <= option_names(generate)
    assert {"seed", "scheme", "engine"} <= option_names(chat)


def test_the_fields_of_a_group_stand_where_the_group_stood() -> None:
    taken: list[tuple[str, WeightsGroup, str]] = []

    @with_groups
    def command(first: str, *, weights: WeightsGroup, last: str = "z") -> None:
        taken.append((first, weights, last))

    fields = list(WeightsGroup.__dataclass_fields__)
    assert list(inspect.signature(command).parameters) == ["first", *fields, "last"]
    command(first="a", **dict.fromkeys(fields), last="b")
    assert taken == [("a", WeightsGroup(), "b")]


def test_a_quantized_folder_computes_in_what_the_command_line_asks_for(
    run: Run, stories: str, tmp_path: Path
) -> None:
    folder = str(tmp_path / "int8")
    options = ("--weight-dtype", "int8", "--group-size", "64", "--compute-dtype", "fp32")
    assert run("quantize", stories, "-o", folder, *options)[0] == 0
    for more in (["--compute-dtype", "bf16"], ["--weight-dtype", "int8"], []):
        assert run("generate", folder, "-p", "Once", "--max-new-tokens", "2", *more)[0] == 0
    code, _, err = run("generate", folder, "-p", "Once", "--group-size", "32")
    assert code == 2
    assert "group_size=32 (stored: 64)" in err and "weight_dtype" not in err


def test_pairs_are_names_and_values_of_json() -> None:
    typed = ["enable_thinking=false", "now=1 May", 'tools=[{"a": 1}]', "n=3", "empty="]
    assert pairs(typed, "--template-arg", "a=b") == {
        "enable_thinking": False,
        "now": "1 May",
        "tools": [{"a": 1}],
        "n": 3,
        "empty": "",
    }
    for wrong in ("name", "=3"):
        with pytest.raises(ConfigError, match=f"--x '{wrong}' needs a name and a value"):
            pairs([wrong], "--x", "a=b")


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_biases_and_template_variables_reach_the_model(
    run: Run, command: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Recorder()
    monkeypatch.setattr(f"neuralchat_lite.cli.{command}.load_model", lambda *_: model)
    say("")
    given = ["--logit-bias", "7=-100", "--logit-bias", "8=1.5", "--template-arg", "think=false"]
    prompt = ["hi", "--prefill", "So\\n"] if command == "generate" else []
    code, _, said = run(command, "model", *prompt, *given)
    assert code == 0, said
    assert model.asked["logit_bias"] == {"7": -100, "8": 1.5}
    assert model.asked["chat_template_kwargs"] == {"think": False}
    if command == "generate":
        assert (model.asked["prefill"], model.asked["echo"]) == ("So\n", True)


def test_a_prefill_needs_a_message(run: Run) -> None:
    code, _, said = run("generate", "model", "hi", "--raw", "--prefill", "So")
    assert code == 2
    assert "--prefill 'So' is part of a chat: leave --raw or --prefill out" in said
