"""How families of models write calls of tools. FAMILIES are all, in the order of looking."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.chat.families import hermes, llama, mistral
from neuralchat_lite.chat.families.family import Family
from neuralchat_lite.checkpoints.tokenizer import Tokenizer

FAMILIES: tuple[Family, ...] = (hermes.FAMILY, mistral.FAMILY, llama.FAMILY)


def family_of(tokenizer: Tokenizer) -> Family | None:
    """The family whose mark a model's chat template or vocabulary has; None for another one."""
    template = template_text(tokenizer)
    added = tokenizer.get_added_vocab()
    for family in FAMILIES:
        if family.mark in template or family.mark in added:
            return family
    return None


def template_text(tokenizer: Tokenizer) -> str:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        return "\n".join(map(str, template.values()))
    return template or ""
