"""The form of an answer: OpenAI's `response_format`, and what vLLM calls `structured_outputs`, with
its older names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Body, Strict

Choice = Annotated[list[str], Field(min_length=1)]


class NamedSchema(Strict):
    name: str | None = Field(None, description="of no effect")
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="of no effect: every schema is kept to")
    description: str | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="with json_object, as llama.cpp has it"
    )


class StructuredOutputs(Strict):
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choice | None = None
    grammar: str | None = None


class Formed(Body):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choice | None = None
    guided_grammar: str | None = None

    def form(self) -> dict[str, Any]:
        """The option of `GenerationOptions` that gives the answer its form. Raises RequestError for
        several."""
        given = {
            "response_format": form_of_format(self.response_format),
            "structured_outputs": form_of_outputs(self.structured_outputs),
            "guided_json": option("json_schema", self.guided_json),
            "guided_regex": option("regex", self.guided_regex),
            "guided_choice": option("choice", self.guided_choice),
            "guided_grammar": option("grammar", self.guided_grammar),
        }
        said = {name: form for name, form in given.items() if form}
        if len(said) > 1:
            names = list(said)
            raise bad_request(
                f"{' and '.join(names)} each give the answer a form: send one of them", names[1]
            )
        return next(iter(said.values()), {})


def option(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def form_of_format(given: ResponseFormat | None) -> dict[str, Any]:
    if given is None:
        return {}
    if given.schema_ is not None and given.type != "json_object":
        raise bad_request(
            f"response_format of the type {given.type} has a schema of its own: give it as "
            "json_schema.schema, with the type json_schema",
            "response_format.schema",
        )
    if given.json_schema is not None and given.type != "json_schema":
        raise bad_request(
            f"response_format of the type {given.type} has a json_schema, which would have no "
            "effect: give the type json_schema, or leave the schema out",
            "response_format.json_schema",
        )
    if given.type == "text":
        return {}
    if given.type == "json_object":
        return {"json_object": True} if given.schema_ is None else {"json_schema": given.schema_}
    if given.json_schema is None:
        raise bad_request(
            "response_format of the type json_schema needs a json_schema: give its name and schema",
            "response_format.json_schema",
        )
    return {"json_schema": given.json_schema.schema_}


def form_of_outputs(given: StructuredOutputs | None) -> dict[str, Any]:
    if given is None:
        return {}
    found = {
        **option("json_schema", given.json_),
        **option("json_object", given.json_object or None),
        **option("regex", given.regex),
        **option("choice", given.choice),
        **option("grammar", given.grammar),
    }
    if len(found) != 1:
        raise bad_request(
            "structured_outputs gives the answer one form: give one of json, json_object, regex, "
            "choice and grammar",
            "structured_outputs",
        )
    return found
