"""Which grammars would keep llguidance busy for minutes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.grammar_cost import (
    MOST_JOINED,
    MOST_STATES,
    states_of_multiples,
    too_costly,
)

pytest.importorskip("llguidance", reason="forms of answers need the extra `structured`")


def of(*values: Any, **more: Any) -> str:
    schema = {"properties": {str(n): {"multipleOf": value} for n, value in enumerate(values)}}
    return json.dumps(schema | more)


def test_states_are_added_and_multiply_where_parts_are_combined() -> None:
    assert states_of_multiples(of()) == 0
    assert states_of_multiples(of(7)) == 7
    assert states_of_multiples(of(7, 11)) == 18
    assert states_of_multiples(of(7, 11, anyOf=[])) == 77
    assert states_of_multiples(of(7, 11, **{"$ref": "#"})) == 77


def test_tens_cost_nothing_and_decimals_as_much_as_their_digits() -> None:
    assert states_of_multiples(of(1000)) == states_of_multiples(of(0.01)) == 1
    assert states_of_multiples(of(0.07)) == 7
    assert states_of_multiples(of(1.5e3)) == 15


@pytest.mark.parametrize(
    "text", [r"{\"multipleOf\": 7}", r'{"multiple\u004ff": 7}', r"{\"multiple\\u004ff\":7}"]
)
def test_a_schema_that_is_quoted_in_a_grammar_is_read(text: str) -> None:
    assert states_of_multiples(text) == 7


def test_an_enum_of_that_name_is_no_multiple() -> None:
    assert states_of_multiples(json.dumps({"enum": ["multipleOf", 10**9]})) == 0


def joined(count: int) -> str:
    return "start: X\nX: " + " & ".join(f"/(.*a){{{n}}}.*/" for n in range(1, count + 2))


def test_expressions_that_are_joined_are_counted() -> None:
    assert too_costly("", joined(MOST_JOINED)) is None
    assert f"{MOST_JOINED + 1} times &" in str(too_costly("", joined(MOST_JOINED + 1)))


def test_a_letter_is_no_join() -> None:
    assert too_costly("", r'start: "&&&&&\"&&&&&" /&lt;|\/&&&&&&&&&&/') is None


@pytest.mark.parametrize("text", ["\\", '\\"', '"multipleOf":', "/\\/", '"multipleOf" ', "&"])
def test_a_long_grammar_is_counted_in_no_time(text: str) -> None:
    start = time.monotonic()
    long = text * ((1 << 20) // len(text))
    too_costly(long, f'"{long}')
    assert time.monotonic() - start < 2


COSTLY: list[dict[str, Any]] = [
    {"json_schema": {"type": "integer", "multipleOf": 999_983}},
    {"json_schema": {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}},
    {"grammar": 'start: %json {"type": "integer", "multipleOf": 999983}'},
    {"grammar": joined(28)},
]


@pytest.mark.parametrize("form", COSTLY, ids=["one", "combined", "in a grammar", "joined"])
def test_what_would_take_minutes_is_refused_at_once(form: dict[str, Any]) -> None:
    model = ncl.load(Path(__file__).parents[2] / "examples/nano/model", dtype="fp32")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="would take minutes"):
        model.generate("1", **form)
    assert time.monotonic() - start < 5


def test_what_is_allowed_is_followed() -> None:
    model = ncl.load(Path(__file__).parents[2] / "examples/nano/model", dtype="fp32")
    schema = {"type": "integer", "multipleOf": 97, "minimum": 100, "maximum": 400}
    found = json.loads(model.generate("1", json_schema=schema, max_new_tokens=20).text)
    assert found in (194, 291, 388) and MOST_STATES > 97
