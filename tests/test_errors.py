"""What the messages of errors may have in them."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest

import neuralchat_lite as ncl
from neuralchat_lite import errors
from neuralchat_lite.errors import NeuralchatError, visible

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, NeuralchatError)
]
TITLE = "\x1b]0;owned\x07"  # sets the title of a terminal's window


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_prints_what_steers_a_terminal(
    kind: type[NeuralchatError], caplog: pytest.LogCaptureFixture
) -> None:
    controls = [chr(code) for code in range(0xA0) if code < 0x20 or code >= 0x7F]
    error = kind(f"a\tb\n{''.join(controls)}\u202e{TITLE}c")
    logging.getLogger("anybody").warning("%s", error)
    shown = (str(error), f"{error}", "".join(traceback.format_exception(error)), caplog.text)
    for text in shown:
        assert not set(text) & (set(controls) - {"\n", "\t"})
        assert "\\x1b]0;owned\\x07c" in text and "\\u202e" in text
    assert str(error).startswith("a\tb\n")
    assert str(kind()) == ""


def test_text_without_controls_stays_as_it_is() -> None:
    text = "naïve 日本語 שלום \u200c\u200d 👩\u200d👩 \u200f\n\t~\u00a0"
    assert visible(text) == text


def test_a_folder_cannot_steer_the_terminal_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / f"a{TITLE}b"
    for make in (lambda: None, folder.mkdir):
        make()
        with pytest.raises(NeuralchatError) as error:
            ncl.load(folder)
        assert "\x1b" not in str(error.value) and "\x07" not in str(error.value)


def test_the_middle_of_a_long_message_is_left_out_and_the_remedy_stays() -> None:
    text = str(errors.CheckpointError(f"x is {'9' * 5000}, expected 2: download it again"))
    assert len(text) <= 1000
    assert text.startswith("x is 999") and text.endswith("expected 2: download it again")
