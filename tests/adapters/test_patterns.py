"""Patterns of strangers mean what `re` makes of them, and end in time."""

from __future__ import annotations

import re
import time

import pytest

from neuralchat_lite.adapters import patterns
from neuralchat_lite.adapters.patterns import HARMLESS, PatternError, answer

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
] + ["lm_head"]
HANGING = (
    r"(.*)*(.*)*(.*)*x",
    r"((\w|\.)+)+$x",
    r"(?:model|model.*)+(?:.*)+(?:.*)+(?:.*)+(?:.*)+#",
    r"(?=((.*)*)*x).*",
)
PATTERNS = (
    r".*\.(q_proj|down_proj)",
    r"model\.layers\..*",
    r"(?i)MODEL.*K_PROJ",
    r"^(?!.*mlp).*_proj$",
    r"model.layers.1.self_attn.q_proj|lm_head",
    r"(?P<half>model).*(?(half)proj|x)",
    r".*layers\.(?:0|11)\b.*{q}*.*",
    r".*[[:alpha:]]",
    "q_proj",
    "",
)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pattern_means_what_re_makes_of_it(pattern):
    found = answer([(pattern, "whole")], MODULES)[pattern, "whole"]
    assert [name for name in MODULES if found[name] is not None] == [
        name for name in MODULES if re.fullmatch(pattern, name)
    ]


@pytest.mark.parametrize("pattern", ["q_proj", "q_proj|mlp.down_proj", r"layers\.1\.(.*)_proj"])
def test_an_ending_begins_after_a_dot(pattern):
    found = answer([(pattern, "ending")], MODULES)[pattern, "ending"]
    assert [name for name in MODULES if found[name] is not None] == [
        name for name in MODULES if re.match(rf"(.*\.)?({pattern})$", name)
    ]


@pytest.mark.parametrize("pattern", ["layers", "[^.]*", "(layers|h)", "blocks|layers"])
def test_the_number_of_a_layer_is_found_whatever_groups_a_pattern_has(pattern):
    found = answer([(pattern, "layer")], MODULES)[pattern, "layer"]
    assert found["model.layers.11.mlp.down_proj"] == "11" and found["lm_head"] is None


@pytest.mark.parametrize("pattern", HANGING)
def test_a_pattern_that_would_hang_is_ended_and_named(pattern):
    start = time.process_time()
    with pytest.raises(PatternError, match="takes over") as refused:
        answer([("q_proj", "ending"), (r"a+", "ending"), (pattern, "whole")], MODULES)
    assert refused.value.pattern == pattern
    assert time.process_time() - start < 2  # what this process spent itself


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "missing"),
        ("(?i)q_proj", "flags"),  # in the middle of what PEFT makes of it
        ("(" * 5000 + ")" * 5000, "recursion|RecursionError|takes over"),
        ("a{1,99999999999}", "."),
        ("a" * 100_000, "100000 characters, at most"),
        (r"\1", "invalid group reference"),
    ],
)
def test_what_is_no_pattern_is_named(pattern, why):
    with pytest.raises(PatternError, match=why):
        answer([(pattern, "ending")], MODULES)


def test_plain_names_need_no_process(monkeypatch):
    monkeypatch.setattr(patterns.subprocess, "run", None)
    for name in ("q_proj", "model.layers.0.self_attn.q_proj", r"layers\.1\..*", "[^.]*"):
        assert answer([(name, "ending")], MODULES)


@pytest.mark.parametrize("pattern", ["(a)", "a+", ".*.*", "a{2}", "[ab]", "a?", r"\.*\.*"])
def test_what_can_repeat_is_not_matched_here(pattern):
    assert not HARMLESS.fullmatch(pattern)


def test_a_machine_without_room_for_a_process_is_an_error_of_ours(monkeypatch):
    def full(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(patterns.subprocess, "run", full)
    with pytest.raises(PatternError, match="no process can be started"):
        answer([("a+", "whole")], MODULES)
