"""Chat templates of seventy real models give the ids that transformers gives, or refuse as there.

They are llama.cpp's, in the folder `templates` beside its vocabulary files, and no part of this
repository: see tests/checkpoints/test_gguf_vocabularies.py.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import PromptError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import encode_prompt

FOLDER = os.environ.get("NEURALCHAT_LITE_GGUF_VOCABULARIES")
TEMPLATES = sorted(Path(FOLDER, "templates").glob("*.jinja")) if FOLDER else []
NANO = Path(__file__).parents[2] / "examples/nano/model"
LONGEST = 100_000  # characters and tokens; nano's tokens are short

pytestmark = pytest.mark.skipif(
    not TEMPLATES, reason="NEURALCHAT_LITE_GGUF_VOCABULARIES has no folder of templates"
)

QUESTION = {"role": "user", "content": "What is 1 + 1?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",  # Mistral's templates want nine letters and digits
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 1, "b": 1}},
        }
    ],
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [QUESTION],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
    "assistant": [QUESTION, {"role": "assistant", "content": "2"}, QUESTION],
    "tool": [
        QUESTION,
        CALL,
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "call00001"},
    ],
}


@pytest.fixture(scope="module")
def ours() -> Any:
    return load_tokenizer(NANO)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(NANO)


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_renders_as_in_transformers(
    path: Path, kind: str, ours: Any, theirs: Any
) -> None:
    messages = CONVERSATIONS[kind]
    ours.chat_template = theirs.chat_template = path.read_text(encoding="utf-8")

    def encoded() -> list[int]:
        prompt = encode_prompt(
            copy.deepcopy(messages), ours, len(ours), LONGEST, GenerationOptions()
        )
        return list(prompt.ids)

    try:
        expected = theirs.apply_chat_template(
            copy.deepcopy(messages), add_generation_prompt=True, return_dict=False
        )
    except Exception:
        with pytest.raises(PromptError):
            encoded()
        return
    assert encoded() == expected
