"""[TOOL_CALLS][{"name": ..., "arguments": {...}}], and of newer models
[TOOL_CALLS]name[ARGS]{...} once for each call. [TOOL_CALLS] and [ARGS] are tokens."""

import json

from neuralchat_lite.chat.families.family import Call, Family, arguments_text, calls_of_json


def calls(text: str) -> list[Call]:
    name, args, rest = text.partition("[ARGS]")
    if args and name.strip() and not name.lstrip().startswith(("[", "{")):
        return [(name.partition("[CALL_ID]")[0].strip(), arguments_text(json.loads(rest)))]
    return calls_of_json(text)


FAMILY = Family(
    mark="[TOOL_CALLS]",
    region={"open_pattern": r"\s*\[TOOL_CALLS\]", "close_pattern": r"(?=\[TOOL_CALLS\])"},
    calls=calls,
    begins="[TOOL_CALLS][",
    ends="]",
)
