"""`neuralchat-lite chat`: what is kept, what is forgotten, and what does not end it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.cli import replies
from neuralchat_lite.cli.chat_commands import COMMANDS

Run = Callable[..., tuple[int, str, str]]
Say = Callable[..., None]


def test_chat_keeps_what_was_said_until_reset(run: Run, stories: str, say: Say) -> None:
    say("Hello", "", "More", "/reset", "Hello", "/what", "/quit", "never")
    command = ("chat", stories, "--max-new-tokens", "12", "--timings")
    code, out, err = run(*command)
    assert code == 0
    fed = re.findall(r"\((\d+) of (\d+) prompt tokens fed\)", err)
    assert len(fed) == 3
    assert [new == all for new, all in fed] == [True, False, True]
    assert "/what is not a command" in err
    assert "forgotten" in err
    say("Hello")
    first = run(*command)[1]
    assert out.startswith(first)
    assert out.endswith(first)


def test_chat_goes_on_when_a_message_does_not_fit(run: Run, stories: str, say: Say) -> None:
    say("long " * 600, "Hello")
    code, out, err = run("chat", stories, "--max-new-tokens", "5")
    assert code == 0
    assert "/reset starts a new conversation" in err
    assert out.strip()


def test_set_shows_the_options_beside_a_draft_model(run: Run, stories: str, say: Say) -> None:
    say("/set", "Hello")
    code, out, err = run("chat", stories, "--max-new-tokens", "5", "--draft", stories)
    assert code == 0
    assert "draft <Model" in err and "temperature" in err
    assert out.strip()


def test_ctrl_c_cancels_an_answer_and_the_chat_goes_on(
    run: Run, stories: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(replies, "write", write)
    say("Hello", "More")
    code, _, err = run("chat", stories, "--max-new-tokens", "10")
    assert code == 0
    assert "\n(cancelled)\n" in err
    assert len(shown) > 10


@pytest.fixture
def talk(run: Run, stories: str, say: Say) -> Callable[..., tuple[str, str]]:
    """Type lines into a chat: (stdout, stderr)."""

    def type_lines(*lines: str, model: str = stories, options: tuple[str, ...] = ()) -> Any:
        say(*lines)
        code, out, err = run("chat", model, "--max-new-tokens", "5", *options)
        assert code == 0, err
        return out, err

    return type_lines


Talk = Callable[..., tuple[str, str]]


def test_help_names_every_command(talk: Talk) -> None:
    err = talk("/help")[1]
    for name, command in COMMANDS.items():
        assert re.search(rf"^{name} .*{re.escape(command.help)}$", err, re.MULTILINE)


def test_regen_and_undo_go_back_a_turn(talk: Talk) -> None:
    once = talk("Hello")[0]
    assert talk("Hello", "/regen")[0] == once * 2
    assert talk("Hello", "/undo", "Hello")[0] == once * 2
    out, err = talk("/undo", "/regen", "Hello", "/undo", "/undo")
    assert out == once
    assert err.count("say something first") == 3 and "Taken back: Hello" in err
    assert "1 turn; " in talk("Hello", "/regen", "/context")[1]


def test_context_counts_what_is_said_after_undo_and_load_too(talk: Talk, tmp_path: Path) -> None:
    def used(*lines: str, options: tuple[str, ...] = ()) -> list[int]:
        err = talk(*lines, options=options)[1]
        return [int(count) for count in re.findall(r"turns?; (\d+) of", err)]

    path = tmp_path / "chat.json"
    before, one, two, undone, loaded, kind = used(
        "/context", "Hello", "/context", f"/save {path}", "Again", "/context", "/undo", "/context",
        "/reset", f"/load {path}", "/context", "/system Be kind to everyone.", "/context",
    )  # fmt: skip
    assert before == 0 < one == undone == loaded < two
    assert kind > loaded
    assert used("/context", "Hello", "/undo", "/context", options=("--system", "No!"))[0] > 0


def test_the_system_message_can_be_changed_in_between(talk: Talk) -> None:
    kind = talk("Hello", options=("--system", "No!"))[0]
    assert talk("/system No!", "Hello")[0] == kind != talk("Hello")[0]
    out, err = talk("/system", "Hello", "/system none", "/reset", "Hello")
    assert out == talk("Hello", "/reset", "Hello")[0]
    assert "There is no system message" in err


def test_options_can_be_set_in_between(talk: Talk) -> None:
    long = talk("Hello")[0]
    assert len(talk("/set max_new_tokens 2", "Hello")[0]) < len(long)
    sampled = ("/set temperature 0.5", "/set top_k=3", "/set temperature 0", "Hello")
    out, err = talk("/set", "/set top_k", "/set max_tokens 3", "/set top_p x", *sampled)
    assert out == long
    assert "temperature 0.0, top_k 0" in err and "/set top_k lacks a value" in err
    assert "did you mean 'max_new_tokens'" in err and "top_p must be" in err
    assert "stop ('\\n',)" in talk("/set stop \\n")[1]


def test_a_saved_chat_goes_on_where_it_was(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    both = talk("Hello", "More", options=("--system", "No!"))[0]
    first, err = talk("Hello", f"/save {file}", options=("--system", "No!"))
    assert "Saved to" in err and [each.name for each in tmp_path.glob("*chat*")] == [file.name]
    out, err = talk(f"/load {file}", "More", f"/save {file}")
    assert first + out == both and "3 messages" in err
    assert len(json.loads(file.read_text())["messages"]) == 5


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", "x" * 50, "[" * 100_000, '{"format": "neuralchat_lite chat"}',
        '{"format": "neuralchat_lite chat", "version": 1, "model": "m", "messages": [1]}',
        '{"format": "neuralchat_lite chat", "version": 1, "model": "m", "messages": "ab"}',
        '{"format": "neuralchat_lite chat", "version": 1, "model": "m", "messages": '
        '[{"role": 1}]}',
        '{"format": "neuralchat_lite chat", "version": 1, "model": "m", "messages": '
        '[{"role": "tool", "content": "x"}]}',
        '{"format": "neuralchat_lite chat", "version": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_another_file_is_not_a_saved_chat_and_is_never_overwritten(
    talk: Talk, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    out, err = talk(f"/load {file}", "Hello")
    assert out == talk("Hello")[0]
    assert re.search("not a chat of version 1|has the role 'tool'", err)
    if "tool" not in content:
        assert "not a chat" in talk("Hello", f"/save {file}")[1]
        assert file.read_text() == content


def test_files_that_cannot_be_read_or_written_end_no_chat(talk: Talk, tmp_path: Path) -> None:
    out, err = talk(
        f"/load {tmp_path}/none", f"/save {tmp_path}/none/x", f"/load {tmp_path}",
        "/save", "/load", "/load /dev/zero", f"/load {tmp_path}/a\0b",
        "/save ~nobody-here/x", "Hello",
    )  # fmt: skip
    assert out == talk("Hello")[0]
    assert err.count("No such file") == 2 and err.count("is not a saved chat") == 2
    assert "/save lacks a file" in err


def test_the_makers_sampling_is_used_and_named(talk: Talk, stories: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories, folder, copy_function=shutil.copyfile)
    file = folder / "generation_config.json"
    file.write_text('{"do_sample": true, "temperature": 0.75, "top_k": 9}')
    _, err = talk("/set", model=str(folder))
    assert "From the model's generation_config.json: temperature 0.75, top_k 9" in err
    assert "temperature 0.75, top_k 9" in err.splitlines()[-1]
    _, err = talk("/set", model=str(folder), options=("--temperature", "0"))
    assert "From the model" not in err and "temperature 0.0, top_k 0" in err
    assert (
        "temperature 0.75, top_k 4" in talk("/set", model=str(folder), options=("--top-k", "4"))[1]
    )
    file.write_text('{"do_sample": true, "top_p": 7}')
    assert "top_p must be" in talk("Hello", model=str(folder))[1]
