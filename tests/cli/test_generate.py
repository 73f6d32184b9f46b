"""`neuralchat-lite generate`: what is printed, and where."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.cli import generate as generate_module
from neuralchat_lite.cli.options import GenerationGroup
from neuralchat_lite.generation.speculation import ModelDrafts

Run = Callable[..., tuple[int, str, str]]
NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPT = "Once upon a time"


def golden(stories: str) -> Any:
    return json.loads((Path(stories) / "golden.json").read_text(encoding="utf-8"))[0]


def test_generate_prints_the_known_story(run: Run, stories: str) -> None:
    code, out, _ = run(
        "generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "200"
    )
    assert (code, out) == (0, golden(stories)["greedy_text"] + "\n")


def test_generate_quantizes_and_says_so_on_stderr_only(run: Run, stories: str) -> None:
    code, out, err = run("generate", stories, "-p", PROMPT, "--max-new-tokens", "20")
    assert code == 0
    assert out.startswith(golden(stories)["greedy_text"][:40])
    assert re.search(r"^Quantizing \(\d+ kB\)$", err, re.MULTILINE)
    again = run("generate", stories, "-p", PROMPT, "--max-new-tokens", "20")
    assert again[:2] == (0, out) and "Quantizing" not in again[2]


def test_the_first_line_says_which_precision_the_activations_have(
    run: Run, stories: str, tmp_path: Path
) -> None:
    def said(model: str, *options: str) -> str:
        code, _, err = run("generate", model, PROMPT, "--max-new-tokens", "1", *options)
        assert code == 0, err
        return err

    said(stories), said(stories, "--weight-dtype", "int8")  # quantizing is said before all else
    said_by_default = said(stories)
    assert said_by_default.startswith("Activations: int8 for int4 weights, bf16 for int8 weights (")
    assert said(stories, "--compute-dtype", "auto") == said_by_default
    assert said(stories, "--weight-dtype", "int8").startswith("Activations: bf16 for int8 weights")
    folder = str(tmp_path / "saved")
    assert run("quantize", stories, "-o", folder)[0] == 0
    assert said(folder).startswith("Activations: bf16, as the quantized folder says")
    assert said(folder, "--compute-dtype", "auto") == said_by_default
    for explicit in (["--compute-dtype", "bf16"], ["--dtype", "fp32"], ["--engine", "torch"]):
        assert "Activations" not in said(stories, *explicit)


def test_prompt_comes_from_stdin(run: Run, stories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    code, out, _ = run("generate", stories, "-p", "-", "--dtype", "fp32", "--max-new-tokens", "200")
    assert (code, out) == (0, golden(stories)["greedy_text"] + "\n")


def test_options_reach_the_sampler(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "20")
    greedy = run(*command)[1]
    # So hot that a model which is sure of every token draws another one too.
    hot = (*command, "--temperature", "100", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
    assert run(*hot, "--seed", "3")[1] == run(*hot, "--seed", "3")[1] != greedy
    assert run(*command, "--stop", " little")[1] == "Once upon a time, there was a\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("\\n", "\n"), ("a\\tb", "a\tb"), ("\\\\n", "\\n"), ("\n", "\n"), ("\\\\\\n", "\\\n")],
)
def test_escapes_in_a_stop_string_mean_what_people_type_them_for(typed: str, meant: str) -> None:
    assert GenerationGroup(stop=[typed]).options(1)["stop"] == (meant,)


class Heard:
    """Stands for a model, with or without a chat template of its own."""

    def __init__(self, chat_template: str | None) -> None:
        self.tokenizer = self
        self.chat_template = chat_template

    def stream(self, prompt: Any, **_: Any) -> Any:
        self.prompt = prompt
        return iter(())


@pytest.fixture
def ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """Ask a model: (the prompt that reaches it, what stderr says)."""

    def ask_model(chat_template: str | None, *arguments: str, stdin: str = "") -> tuple[Any, str]:
        model = Heard(chat_template)
        monkeypatch.setattr(generate_module, "load_model", lambda *_: model)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code, _, err = run("generate", "m", *arguments)
        assert code == 0, err
        return model.prompt, err

    return ask_model


def test_a_model_with_a_chat_template_is_spoken_to_through_it(
    ask: Callable[..., tuple[Any, str]],
) -> None:
    message = [{"role": "user", "content": "Hi"}]
    system = [{"role": "system", "content": "Be kind."}, *message]
    for arguments in (["Hi"], ["-p", "Hi"], ["Hi", "--chat"]):
        heard, said = ask("its own", *arguments)
        assert heard == message
        assert "in the model's chat template (--raw" in said
    assert ask("its own", "Hi", "--system", "Be kind.")[0] == system
    heard, said = ask("its own", "Hi", "--raw")
    assert heard == "Hi" and "without the model's chat template" in said
    heard, said = ask(None, "Hi")
    assert heard == "Hi" and "the model has no chat template (--chat" in said
    heard, said = ask(None, "Hi", "--chat")
    assert heard == message and "neural-chat's form" in said


@pytest.mark.parametrize(
    ("stdin", "content"),
    [
        ("Hi\n", "Hi"),
        ("Hi\r\n", "Hi"),
        ("\ufeffHi", "Hi"),
        ("\ufeffHi\n\n", "Hi\n"),
        ("a\ufeffb\nc", "a\ufeffb\nc"),
    ],
)
def test_a_piped_message_comes_without_the_marks_of_its_file(
    ask: Callable[..., tuple[Any, str]], stdin: str, content: str
) -> None:
    for arguments in (["-p", "-"], ["-"]):
        assert ask("its own", *arguments, stdin=stdin)[0][0]["content"] == content
    assert ask("its own", "-", "--raw", stdin=stdin)[0] == stdin  # a text to continue, as it is


def test_an_answer_that_a_limit_has_cut_says_so(run: Run, stories: str) -> None:
    command = ("generate", stories, PROMPT, "--dtype", "fp32", "--max-new-tokens")
    cut = "(The answer was cut after 7 tokens: --max-new-tokens allows more.)"
    assert cut in run(*command, "7")[2]
    assert "cut" not in run(*command, "9", "--stop", " little")[2]
    context = run(*command, "50", "--context-length", "20")[2]
    assert "cut, since the context is full after 21 tokens" in context


def test_chat_message_prints_the_answer_alone(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", "Hello", "--chat", "--max-new-tokens", "5")
    code, out, _ = run(*command, "--system", "No!")
    assert code == 0
    assert "Hello" not in out
    assert out != run(*command)[1]


NANO = str(Path(__file__).parents[2] / "examples/nano/model")


def test_a_draft_model_is_loaded_beside_and_changes_no_answer(
    run: Run, stories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed: list[int] = []
    whole = ModelDrafts.draft

    def draft(self: ModelDrafts, count: int) -> list[int]:
        found = whole(self, count)
        guessed.append(len(found))
        return found

    monkeypatch.setattr(ModelDrafts, "draft", draft)
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "20")
    alone = run(*command)[1]
    assert not guessed
    code, out, err = run(*command, "--draft", stories)
    assert (code, out) == (0, alone), err
    assert guessed


@pytest.mark.parametrize("command", [("generate", "-p", "Hello", "--raw"), ("chat",)])
def test_a_draft_model_of_another_vocabulary_is_refused(
    run: Run, stories: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    name, *options = command
    code, out, err = run(name, stories, *options, "--draft", NANO)
    assert (code, out) == (2, "")
    assert "the draft" in err and "has another vocabulary than this model" in err


def test_a_draft_that_is_no_model_is_refused(run: Run, stories: str, tmp_path: Path) -> None:
    code, _, err = run("generate", stories, "-p", PROMPT, "--draft", str(tmp_path / "none"))
    assert code == 2
    assert str(tmp_path / "none") in err


def test_timings_go_to_stderr(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "9")
    _, out, err = run(*command, "--timings")
    assert out == run(*command)[1]
    assert re.search(
        r"^9 tokens; first after \d+ ms \(5 of 5 prompt tokens fed\); then [\d.]+ ms each "
        r"\([\d.]+ tokens/s\); [\d.]+ MB a token, [\d.e+]+ [MG]B/s read; loaded in [\d.]+ s\n\Z",
        err,
        re.MULTILINE,
    )


def test_an_answer_has_the_form_that_is_asked_for(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("llguidance", reason="needs the extra structured")
    nano, path = str(NANO), tmp_path / "schema.json"
    schema = str(path)
    path.write_text('{"enum": ["a = 1", "b = 2"]}')
    code, out, _ = run(
        "generate", nano, "-p", "calculate", "--dtype", "fp32", "--json-schema", schema
    )
    assert code == 0 and json.loads(out.removeprefix("calculate")) in ("a = 1", "b = 2")
    code, out, _ = run(
        "generate", nano, "-p", "calculate", "--dtype", "fp32", "--regex", "[0-9]{3}x"
    )
    assert code == 0 and re.fullmatch(r"(calculate)?[0-9]{3}x\n", out)
    path.write_text("{")
    code, _, err = run("generate", nano, "-p", "calculate", "--json-schema", schema)
    assert code != 0 and "cannot be read" in err
