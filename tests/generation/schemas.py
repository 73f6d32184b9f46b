"""Random JSON schemas of the kinds that JSONSchemaBench collects: signatures of functions,
settings, records of events, resources that refer to each other."""

from __future__ import annotations

from random import Random
from typing import Any

WORDS = ("name", "age", "kind", "spec", "port", "host", "tags", "unit", "id", "ref", "größe", "a b")
PATTERNS = ("^[a-z]{2,8}$", "^[A-Z]{3}-[0-9]{4}$", "b+c", r"^\d{1,3}(\.\d{1,3}){3}$", "^(yes|no)$")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname")


def random_schema(random: Random, depth: int = 3) -> dict[str, Any]:
    """A schema as a whole: an object, its definitions beside it."""
    schema = an_object(random, depth)
    if random.random() < 0.3:  # a tree that ends
        schema["$defs"] = {"node": {**an_object(random, 1)}}
        node = schema["$defs"]["node"]
        node["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
        schema["properties"]["root"] = {"$ref": "#/$defs/node"}
        schema["required"] = [*schema["required"], "root"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def any_of_kinds(random: Random, depth: int) -> dict[str, Any]:
    kinds = [a_string, a_string, a_number, an_integer, an_enum, a_constant, a_flag, nullable]
    if depth > 0:
        kinds += [an_object, an_object, a_list, a_list, a_tuple, one_of, any_of, all_of, a_map]
    return random.choice(kinds)(random, depth - 1)


def an_object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(WORDS, random.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: any_of_kinds(random, depth) for name in names},
        "required": [name for name in names if random.random() < 0.7],
    }
    if random.random() < 0.6:
        schema["additionalProperties"] = random.choice([False, False, {"type": "integer"}])
    if random.random() < 0.5:
        schema |= {"title": "Thing", "description": "What a thing has."}
    return schema


def a_map(random: Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if random.random() < 0.5:
        schema["patternProperties"] = {"^x-[a-z]{1,4}$": any_of_kinds(random, depth)}
        schema["additionalProperties"] = False
    else:
        schema["additionalProperties"] = any_of_kinds(random, depth)
    if random.random() < 0.3:
        schema["maxProperties"] = random.randint(1, 3)
    return schema


def a_list(random: Random, depth: int) -> dict[str, Any]:
    least = random.randint(0, 2)
    schema = {"type": "array", "items": any_of_kinds(random, depth), "minItems": least}
    return {**schema, "maxItems": least + random.randint(0, 3)}


def a_tuple(random: Random, depth: int) -> dict[str, Any]:
    items = [any_of_kinds(random, depth) for _ in range(random.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def any_of(random: Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [any_of_kinds(random, depth) for _ in range(random.randint(2, 3))]}


def one_of(random: Random, depth: int) -> dict[str, Any]:
    """Kinds that exclude each other by a constant."""
    kinds = []
    for word in random.sample(WORDS[:6], 2):
        properties = {"type": {"const": word}, "value": any_of_kinds(random, depth)}
        kinds.append({"type": "object", "properties": properties, "required": ["type"]})
    return {"oneOf": kinds}


def all_of(random: Random, depth: int) -> dict[str, Any]:
    left, right = random.sample(WORDS, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {left: any_of_kinds(random, depth)}},
            {"properties": {right: an_integer(random, depth)}, "required": [right]},
        ]
    }


def a_string(random: Random, depth: int) -> dict[str, Any]:
    limits: list[dict[str, Any]] = [
        {},
        {"minLength": random.randint(0, 3), "maxLength": random.randint(3, 12)},
        {"pattern": random.choice(PATTERNS)},
        {"format": random.choice(FORMATS)},
        {"minLength": 4},
    ]
    return {"type": "string", **random.choice(limits)}


def a_number(random: Random, depth: int) -> dict[str, Any]:
    low = random.choice([-5, 0, 0.5, 100])
    limits = [{}, {"minimum": low, "maximum": low + 20.25}, {"exclusiveMinimum": low}]
    return {"type": "number", **random.choice(limits)}


def an_integer(random: Random, depth: int) -> dict[str, Any]:
    low = random.randint(-50, 50)
    limits = [{}, {"minimum": low}, {"minimum": low, "maximum": low + 99}, {"multipleOf": 5}]
    return {"type": "integer", **random.choice(limits)}


def an_enum(random: Random, depth: int) -> dict[str, Any]:
    return {"enum": random.sample(["red", "green", 'quo"te', "\\", 1, 2.5, None, True, "ä"], 3)}


def a_constant(random: Random, depth: int) -> dict[str, Any]:
    return {"const": random.choice(["v1", 7, False, [1, "two"], {"a": None}])}


def a_flag(random: Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def nullable(random: Random, depth: int) -> dict[str, Any]:
    return {"type": [random.choice(["string", "integer", "boolean"]), "null"]}
