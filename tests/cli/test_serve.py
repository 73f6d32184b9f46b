"""`neuralchat-lite serve`: what it refuses before a model is loaded."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralchat_lite.cli.serve import (
    bytes_of,
    is_loopback,
    keys_in,
    name_of,
    names_of,
    warn_if_open,
)
from neuralchat_lite.errors import ConfigError

NANO = str(Path(__file__).parents[2] / "examples/nano/model")
Run = Callable[..., tuple[int, str, str]]


def test_without_its_packages_it_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, err = run("serve", NANO)
    assert code == 2 and "pip install 'neuralchat_lite[serve]'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-batch", "0"], "max_batch"),
        (["--temperature", "-1"], "temperature"),
        (["--kv-memory", "much"], "--kv-memory"),
        (["--grace", "inf"], "--grace"),
        (["--grace", "nan"], "--grace"),
        (["--grace", "-1"], "--grace"),
        (["--model-name", "a", "--model-name", "b"], "--model-name"),
        (["--api-key-file", "/nowhere"], "/nowhere"),
        (["--port", "70000"], "--port"),
    ],
)
def test_a_bad_option_is_one_line(run: Run, arguments: list[str], said: str) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    code, _, err = run("serve", NANO, *arguments)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(run: Run) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = run("serve", NANO, "--port", str(port))
    assert code == 2 and str(port) in err and "--port" in err


def test_models_are_called_as_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert name_of(str(tmp_path)) == tmp_path.name
    assert name_of(str(tmp_path / "m.gguf")) == "m"
    assert name_of("Intel/neural-chat-7b-v3-2") == "Intel/neural-chat-7b-v3-2"
    assert names_of(["a/b", "c/d"], ["x", "y"]) == ["x", "y"]
    with pytest.raises(ConfigError, match="'x'"):
        names_of(["a/b", "c/d"], ["x", "x"])


def test_keys_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("# note\none\n\n two \n")
    file.chmod(0o600)
    assert keys_in(file) == ("one", "two")
    assert capsys.readouterr().err == ""
    file.chmod(0o644)
    keys_in(file)
    assert "chmod 600" in capsys.readouterr().err
    file.write_text("# note\n")
    with pytest.raises(ConfigError, match="no keys"):
        keys_in(file)


def test_sizes_have_units() -> None:
    found = [bytes_of(text, "--x") for text in ("7", "8M", "1.5G", "4GiB", "2 kB")]
    assert found == [7, 8 << 20, 3 << 29, 4 << 30, 2 << 10]
    for text in ("", "0", "G", "-1", "1X", "9" * 400, "9" * 20):
        with pytest.raises(ConfigError, match="--x"):
            bytes_of(text, "--x")


def test_an_open_server_without_keys_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_open("127.0.0.1", ())
    warn_if_open("::1", ())
    warn_if_open("0.0.0.0", ("key",))
    assert capsys.readouterr().err == ""
    warn_if_open("0.0.0.0", ())
    assert "WARNING" in capsys.readouterr().err
    assert is_loopback("localhost") and not is_loopback("example.org")
