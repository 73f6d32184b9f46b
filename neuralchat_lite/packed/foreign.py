"""A line in config.json by which other readers refuse a quantized folder.

transformers 5 does not look at the format that the weights name, and would make up every weight
that it does not find. It does look at `transformers_weights`, the name of the file with the
weights, and refuses a name of another form in an error that shows it. So the name says what to do.
"""

from __future__ import annotations

import json

KEY = "transformers_weights"
REMEDY = (
    "this folder is quantized by neuralchat_lite, and transformers cannot read it; load it with "
    "neuralchat_lite.load(folder), or with AutoModelForCausalLM of neuralchat_lite.transformers"
)


def marked(config: bytes) -> bytes:
    """config.json of a checkpoint, or of a quantized folder, as a quantized folder has it."""
    return (json.dumps({**json.loads(config), KEY: REMEDY}, indent=2) + "\n").encode()
