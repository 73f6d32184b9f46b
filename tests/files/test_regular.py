"""Only regular files are opened, and nothing is waited for."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from neuralchat_lite.files import regular
from neuralchat_lite.files.regular import open_regular, read_regular


def test_the_bytes_of_a_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file", 3) == b"abc"
    with pytest.raises(OSError, match="at most") as caught:
        read_regular(tmp_path / "file", 2)
    assert "download it again" in regular.remedy_of(caught.value)


def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    regular_file = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self: regular_file)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match="it is a named pipe, expected a regular file"):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # their names are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert stat.S_ISSOCK(Path("socket").stat().st_mode)
        with pytest.raises(OSError, match="it is a socket"):
            open_regular(Path("socket"))


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_cannot_be_is_an_error_of_the_operating_system(name: str) -> None:
    with pytest.raises(OSError, match="zero byte or half a character"):
        open_regular(Path(name))
