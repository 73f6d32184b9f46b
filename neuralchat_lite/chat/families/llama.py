"""{"name": ..., "parameters": {...}} as the whole answer, after <|python_tag|> or not: Llama 3."""

from neuralchat_lite.chat.families.family import Family, calls_of_json

FAMILY = Family(
    mark="<|python_tag|>",
    region={"open_pattern": r'\s*<\|python_tag\|>|\A\s*(?=\{\s*")'},
    calls=calls_of_json,
    arguments="parameters",
    bare=True,
)
