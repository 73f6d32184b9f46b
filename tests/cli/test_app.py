"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.cli import app as cli

Run = Callable[..., tuple[int, str, str]]
START = "from neuralchat_lite.cli.app import main; main()"
PROMPT = "Once upon a time"
NANO = str(Path(__file__).parents[2] / "examples/nano/model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def run(cache: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run_command


@pytest.fixture
def stories(shared_data: Path) -> str:
    return str(shared_data / "models/stories260K")


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
    assert run("generate", stories, "-p", PROMPT, "--max-new-tokens", "20") == (0, out, "")


def test_prompt_comes_from_stdin(run: Run, stories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    code, out, _ = run("generate", stories, "-p", "-", "--dtype", "fp32", "--max-new-tokens", "200")
    assert (code, out) == (0, golden(stories)["greedy_text"] + "\n")


def test_options_reach_the_sampler(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "20")
    greedy = run(*command)[1]
    hot = (*command, "--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
    assert run(*hot, "--seed", "3")[1] == run(*hot, "--seed", "3")[1] != greedy
    assert run(*command, "--stop", " little")[1] == "Once upon a time, there was a\n"


def test_chat_message_prints_the_answer_alone(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", "Hello", "--chat", "--max-new-tokens", "5")
    code, out, _ = run(*command, "--system", "Be kind.")
    assert code == 0
    assert "Hello" not in out
    assert out != run(*command)[1]


def test_timings_go_to_stderr(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "9")
    _, out, err = run(*command, "--timings")
    assert out == run(*command)[1]
    assert re.fullmatch(
        r"9 tokens; first after \d+ ms \(5 of 5 prompt tokens fed\); then [\d.]+ ms each "
        r"\([\d.]+ tokens/s\); [\d.]+ MB a token, [\d.e+]+ [MG]B/s read; loaded in [\d.]+ s\n",
        err,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "/nowhere", "-p", "x"], "there is no folder '/nowhere'"),
        (["generate", "STORIES", "-p", ""], "the prompt is an empty text"),
        (["generate", "STORIES", "-p", "x", "--max-new-tokens", "0"], "max_new_tokens must be"),
        (["generate", "STORIES", "-p", "x", "--top-k", "5"], "no effect with temperature 0"),
        (["generate", "STORIES", "-p", "x", "--weight-dtype", "nf4"], "weight_dtype='nf4'"),
        (["generate", "STORIES", "-p", "x", "--threads", "0"], "threads must be"),
        (["generate", "STORIES", "-p", "x", "--system", "y"], "give --chat too"),
        (["generate", "STORIES", "-p", "x", "--temperature", "hot"], "--temperature"),
        (["generate", "STORIES", "-p", "a\udcff"], "not valid UTF-8 at character 1"),
        (["generate", "STORIES", "-p", "x", "--context-length", "513"], "512 positions, got 513"),
        (["generate", "x" * 5000, "-p", "x"], "cannot be opened as a model folder"),
        (["generate", "~nobody-here/x", "-p", "x"], "cannot be opened as a model folder"),
        (["quantize", "STORIES", "--compute-dtype", "fp32"], "no property of quantized weights"),
        (["generate", "STORIES"], "Missing option"),
        (["quantize", "STORIES", "-o", "TMP"], "not an empty folder"),
        (["cache", "verify", "nothing"], "there is no entry 'nothing'"),
        (["cache", "remove"], "give the names of entries"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    run: Run, stories: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    names = {"STORIES": stories, "TMP": str(tmp_path)}
    code, _, err = run(*(names.get(argument, argument) for argument in arguments))
    last = err.splitlines()[-1]
    assert code == 2
    assert message in last
    assert last.startswith("neuralchat-lite: ")
    assert "Traceback" not in err
    assert err.count("neuralchat-lite: ") == 1


class Recorder:
    """Stands for a model: keeps what it was asked, and answers nothing."""

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
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded = Recorder(), {}

    def load(name: str, config: Any, *, progress: Any, **more: Any) -> Recorder:
        loaded.update(more, model=name, config=config)
        return model

    monkeypatch.setattr("neuralchat_lite.api.load", load)
    arguments, wanted = spelled(WEIGHT_OPTIONS, LOAD_OPTIONS, GENERATION_OPTIONS)
    say(monkeypatch, "Hello")
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


def test_the_cache_removes_only_what_it_made(run: Run, stories: str, cache: Path) -> None:
    run("generate", stories, "-p", "Once", "--max-new-tokens", "1")
    thesis = cache / "thesis-int4-g32-notes"
    thesis.mkdir()
    (thesis / "text").write_text("precious")
    unfinished = cache / ".tmp-0123-4194304"  # no process has so large a number
    unfinished.mkdir()
    (unfinished / "part").write_bytes(bytes(5000))
    code, out, err = run("cache", "list")
    assert code == 0 and "thesis" not in out and "1 model," in err
    assert "5 kB of interrupted runs" in err
    assert run("cache", "remove", "thesis-int4-g32-notes")[0] == 2
    assert run("cache", "remove", "--all")[0] == 0
    assert (thesis / "text").read_text() == "precious"
    assert not unfinished.exists()
    assert run("cache", "list")[1] == ""


def test_an_entry_without_its_weights_is_not_called_whole(
    run: Run, stories: str, cache: Path
) -> None:
    run("generate", stories, "-p", "Once", "--max-new-tokens", "1")
    next(cache.glob("*/model.safetensors")).unlink()
    _, out, _ = run("cache", "list")
    assert "model.safetensors cannot be read" in out and "whole" not in out


def test_text_that_is_not_utf8_is_refused_and_a_chat_goes_on(stories: str, cache: Path) -> None:
    command = [sys.executable, "-c", START]
    one = [*command, "generate", stories, "-p", "-", "--max-new-tokens", "3"]
    chat = [*command, "chat", stories, "--max-new-tokens", "3"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    first = subprocess.run(one, input=b"a\xff", capture_output=True, env=environment)
    assert first.returncode == 2 and b"not valid UTF-8" in first.stderr
    lines = b"hi\na\xffb\nmore\n"
    for env in (environment, os.environ | {"PYTHONIOENCODING": "utf-8:surrogateescape"}):
        second = subprocess.run(chat, input=lines, capture_output=True, env=env)
        assert second.returncode == 0, second.stderr
        assert b"not valid UTF-8" in second.stderr


def test_debug_shows_where_it_went_wrong(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "")  # set by --debug; put back after the test
    with pytest.raises(cli.NeuralchatError, match="no folder"):
        cli.main(["--debug", "generate", "/nowhere", "-p", "x"])


def test_a_bug_is_told_from_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(cli, "load_model", broken)
    code, _, err = run("generate", "x", "-p", "x")
    assert code == 1
    assert (
        err == "neuralchat-lite: internal error, KeyError: 'oops' (run with --debug to see where)\n"
    )


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_chat_keeps_what_was_said_until_reset(
    run: Run, stories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "Hello", "", "More", "/reset", "Hello", "/what", "/quit", "never")
    command = ("chat", stories, "--max-new-tokens", "12", "--timings")
    code, out, err = run(*command)
    assert code == 0
    fed = re.findall(r"\((\d+) of (\d+) prompt tokens fed\)", err)
    assert len(fed) == 3
    assert [new == all for new, all in fed] == [True, False, True]
    assert "/what is no command" in err
    assert "forgotten" in err
    say(monkeypatch, "Hello")
    first = run(*command)[1]
    assert out.startswith(first)
    assert out.endswith(first)


def test_chat_goes_on_when_a_message_does_not_fit(
    run: Run, stories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "long " * 600, "Hello")
    code, out, err = run("chat", stories, "--max-new-tokens", "5")
    assert code == 0
    assert "/reset starts anew" in err
    assert out.strip()


def test_ctrl_c_cancels_an_answer_and_the_chat_goes_on(
    run: Run, stories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "write", write)
    say(monkeypatch, "Hello", "More")
    code, _, err = run("chat", stories, "--max-new-tokens", "10")
    assert code == 0
    assert err.endswith("(cancelled)\n")
    assert len(shown) > 10


def test_quantize_writes_a_folder_that_generate_reads(
    run: Run, stories: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    code, out, _ = run("quantize", stories, "-o", str(folder), "--weight-dtype", "int8")
    assert (code, out) == (0, f"{folder}\n")
    stored = json.loads((folder / "quantization_config.json").read_text(encoding="utf-8"))
    assert stored["weight_dtype"] == "int8"
    assert run("generate", str(folder), "-p", PROMPT, "--max-new-tokens", "3")[0] == 0


def test_cache_lists_verifies_and_removes(run: Run, stories: str, cache: Path) -> None:
    folder = Path(run("quantize", stories)[1].strip())
    assert folder.parent == cache
    assert run("cache", "list")[1].startswith(f"{folder.name}\t")
    assert run("cache", "verify")[:2] == (0, f"{folder.name}\twhole\n")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    code, out, err = run("cache", "verify")
    assert code == 2
    assert "damaged: " in out
    assert f"cache remove {folder.name}" in err
    assert run("cache", "remove", folder.name)[:2] == (0, f"{folder.name}\tremoved\n")
    assert not folder.exists()
    assert run("cache", "list")[1] == ""


def test_doctor_says_what_runs_and_why(run: Run, cache: Path) -> None:
    code, out, _ = run("doctor")
    found = dict(re.findall(r"^([\w ]+): +(.+)$", out, re.MULTILINE))
    assert code == 0
    for name in ("version", "packages", "CPU", "CPU features", "kernels", "threads", "cache"):
        assert found[name]
    assert re.match(r"[\d.]+ GB/s with \d+ threads", found["bandwidth"])
    assert str(cache) in found["cache"]


def test_help_shows_every_command_without_loading_torch() -> None:
    code = "import sys; from neuralchat_lite.cli.app import app\n"
    code += "app(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("generate", "chat", "quantize", "merge", "cache", "doctor"):
        assert command in done.stdout


def test_version_is_printed(run: Run) -> None:
    assert re.fullmatch(r"neuralchat-lite \d.*\n", run("--version")[1])


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Usage: neuralchat-lite" in out


def test_ctrl_c_exits_with_130_and_no_traceback(stories: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "generate", "-p", "-", stories],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEURALCHAT_LITE_CACHE": str(tmp_path)},
    )
    time.sleep(2)  # it waits for its prompt
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_a_closed_pipe_ends_without_a_traceback(stories: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "generate", stories, "-p", PROMPT, "--dtype", "fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEURALCHAT_LITE_CACHE": str(tmp_path)},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert process.wait(30) == 1
    process.stderr.close()


def test_adapters_are_merged_before_generating_and_quantizing(
    run: Run, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    sft, dpo = (str(make_adapter(NANO, name, seed)) for seed, name in enumerate(("sft", "dpo")))
    merged = str(tmp_path / "merged")
    code, out, err = run("merge", NANO, sft, dpo, "-o", merged)
    assert (code, out) == (0, merged + "\n")
    assert re.search(r"^Merging \([\d.]+ MB\)$", err, re.MULTILINE)
    command = ("generate", "-p", "calculate 1 + 2", "--max-new-tokens", "8", "--dtype", "bf16")
    code, want, _ = run(*command, merged)
    assert code == 0
    both = ("--adapter", sft, "--adapter", dpo)
    assert run(*command, NANO, *both) == (0, want, "")
    assert run(*command, NANO)[1] != want
    folder = Path(run("quantize", NANO, *both)[1].strip())
    assert len(json.loads((folder / "manifest.json").read_text())["adapters"]) == 2
    assert folder == Path(run("quantize", NANO, *both)[1].strip())
    for again in (("quantize", NANO, "--adapter", merged), ("merge", NANO, sft, "-o", merged)):
        code, out, err = run(*again)
        assert (code, out, err.count("\n")) == (2, "", 1)
