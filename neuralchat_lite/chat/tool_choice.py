"""Grammars that hold an answer to calls of tools, in the form that its model's family writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neuralchat_lite.chat.families import family_of
from neuralchat_lite.chat.families.family import Family
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.form import JSON_RULES
from neuralchat_lite.values import shown

Tools = Sequence[Mapping[str, Any]]


def forced_call(
    tokenizer: Any, tools: Tools, name: str | None = None, *, several: bool = False
) -> str:
    """A grammar, for the option `grammar`, of calls alone.

    tools: in OpenAI's form
    name: of the one tool that is called; None: of any
    several: whether one call or more

    Raises ConfigError for a name that no tool has, and for a model whose calls have no known form.
    """
    family, call = rules_of_call(tokenizer, tools, name)
    again = '("\\n" call)*' if several and family.ends and not family.bare else ""
    return f"start: call {again}\n{call}"


def free_calls(tokenizer: Any, tools: Tools, *, several: bool = True) -> str:
    """A grammar of texts in which calls have the form and the arguments that the tools allow.

    several: whether calls may follow each other; else the answer ends with the first

    Raises ConfigError for a model whose calls have no known form.
    """
    family, body = rules_of_call(tokenizer, tools, None, inner=True)
    if family.bare:  # the answer is a call or none
        return f"start: TEXT | body\nTEXT: /\\s*[^{{\\s](.|\\n)*/\n{body}"
    token = special_token(tokenizer, family.mark)
    rest = json.dumps(family.begins.removeprefix(family.mark))
    ends = json.dumps(family.ends) if family.ends else ""
    if token is not None:  # which no text has
        lead, text = f"lead: text <[{token}]>", "text: TEXT?\nTEXT: /(.|\\n)+/"
    else:  # a lazy rule ends a text at the first mark in it
        lead = f"lead[lazy]: /(.|\\n)*/ {json.dumps(family.mark)}"
        text = "text: TEXT\nTEXT: /(.|\\n)*/"
    start = "start: call* text" if several else "start: text | call"
    return f"{start}\ncall: lead {rest} body {ends}\n{lead}\n{text}\n{body}"


def rules_of_call(
    tokenizer: Any, tools: Tools, name: str | None, *, inner: bool = False
) -> tuple[Family, str]:
    """The family, and the rule `call`; with `inner` the rule `body` of what its marks enclose."""
    family = family_of(tokenizer)
    if family is None:
        raise ConfigError(
            "a call of a tool cannot be forced: neither the chat template nor the vocabulary of "
            "this model has a known form of calls; take a model that was trained to call tools"
        )
    functions = [dict(tool.get("function", tool)) for tool in tools]
    wanted = [one for one in functions if name in (None, one.get("name"))]
    if not wanted:
        known = ", ".join(str(one.get("name")) for one in functions) or "none"
        raise ConfigError(f"there is no tool {shown(name)}: the tools are {known}")
    rules = [f"body: {' | '.join(f'tool_{index}' for index in range(len(wanted)))}"]
    for index, function in enumerate(wanted):
        rules.append(f"tool_{index}: %json {json.dumps(call_schema(family, function))}")
    if not inner:
        begins, ends = (literal(tokenizer, family, text) for text in (family.begins, family.ends))
        rules.insert(0, f"call: {begins} body {ends}")
    return family, "\n".join([*rules, ""])


def call_schema(family: Family, function: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of a call, as JSON."""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    parameters = moved(parameters, f"#/properties/{family.arguments}")
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, family.arguments: parameters},
        "required": ["name", family.arguments],
        "additionalProperties": False,
        "x-guidance": JSON_RULES,
    }


def moved(schema: Any, to: str) -> Any:
    """A schema whose references to itself hold where it is a part, `to`, of another."""
    if isinstance(schema, list):
        return [moved(each, to) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: f"{to}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, to)
        for key, value in schema.items()
    }


def literal(tokenizer: Any, family: Family, text: str) -> str:
    """A text as Lark has it. A mark that is a special token is that token: it has no text."""
    if not text:
        return ""
    token = special_token(tokenizer, family.mark)
    if token is not None and text.startswith(family.mark):
        rest = text.removeprefix(family.mark)
        return f"<[{token}]>" + (f" {json.dumps(rest)}" if rest else "")
    return json.dumps(text)


def special_token(tokenizer: Any, mark: str) -> int | None:
    """The special token that a mark is; None where it is ordinary text."""
    token: int | None = tokenizer.convert_tokens_to_ids(mark)
    known = token is not None and tokenizer.convert_ids_to_tokens(token) == mark
    return token if known and token in tokenizer.all_special_ids else None
