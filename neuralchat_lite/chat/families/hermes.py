"""<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen, SmolLM (there a list)."""

from neuralchat_lite.chat.families.family import Family, calls_of_json

FAMILY = Family(
    mark="<tool_call>",
    region={"open_pattern": r"\s*<tool_call>", "close": "</tool_call>"},
    calls=calls_of_json,
    begins="<tool_call>\n",
    ends="\n</tool_call>",
)
