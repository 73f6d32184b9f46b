"""Token ids to text that can be shown at once: no character split, no stop string begun.

A token is not a text. It may be a few bytes of a character, and a sentencepiece tokenizer drops
the space before a token that comes first. So new tokens are decoded after an anchor, a plain token
whose text is then removed again. Text that may still change is held back.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from neuralchat_lite.checkpoints.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece spells a byte
# How byte-level tokenizers spell the bytes: printable ones as themselves, the others beyond them.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(OTHERS)}
LONGEST_PENDING = 16  # tokens without a clean end before the oldest are let go
KEPT_PENDING = 8  # more bytes than a character has: decoding is in step again after them


class Detokenizer:
    """The text of a growing list of tokens, piece by piece. Joined, the pieces are what
    `tokenizer.decode` adds for these tokens after a text. Special tokens have no text.

    Only bytes that are not valid UTF-8 become U+FFFD. A valid character beside them stays, where
    `tokenizer.decode` replaces the whole run of byte tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self.anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
        self.anchor_length = len(self.decode([self.anchor]))
        self.byte_tokens = self.decodes_byte_tokens()
        self.bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.pending: list[int] = []  # tokens whose text is not yet out as a whole
        self.shown = 0  # characters of their text that are

    def push(self, token_id: int) -> str:
        """The text that this token makes certain: often its own, sometimes none."""
        if token_id in self.special:
            return ""
        token = self.tokenizer.convert_ids_to_tokens(token_id) if self.byte_tokens else None
        byte = BYTE_TOKEN.fullmatch(token) if token else None
        if byte:
            return self.flush_pending() + self.bytes.decode(bytes.fromhex(byte[1]))
        return self.flush_bytes() + self.push_pending(token_id)

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self.flush_bytes() + self.flush_pending()

    def push_pending(self, token_id: int) -> str:
        self.pending.append(token_id)
        text = self.text_of(self.pending)
        # A byte-level tokenizer decodes an unfinished character, and only the last can be
        # unfinished, to one U+FFFD. Everything before it is final.
        certain = len(text) - text.endswith(REPLACEMENT)
        piece = text[self.shown : certain]
        if certain == len(text):
            self.pending, self.shown = [], 0
        elif len(self.pending) > LONGEST_PENDING:
            self.pending = self.pending[-KEPT_PENDING:]
            self.shown = max(0, len(self.text_of(self.pending)) - 1)
        else:
            self.shown = max(self.shown, certain)
        return piece

    def flush_pending(self) -> str:
        rest = self.text_of(self.pending)[self.shown :] if self.pending else ""
        self.pending, self.shown = [], 0
        return rest

    def flush_bytes(self) -> str:
        rest = self.bytes.decode(b"", final=True)
        self.bytes.reset()
        return rest

    def text_of(self, ids: list[int]) -> str:
        return self.decode([self.anchor, *ids])[self.anchor_length :]

    def name(self, token_id: int) -> str:
        """The text of a token alone, or the name of a special one. Parts of a character are
        U+FFFD."""
        if token_id in self.special:
            return str(self.tokenizer.convert_ids_to_tokens(token_id))
        return self.text_of([token_id])

    def bytes_of(self, token_id: int) -> bytes | None:
        """The bytes of a token alone, also of one that is a part of a character; of a special one
        those of its name. None where the tokenizer does not tell them."""
        name = self.name(token_id)
        if REPLACEMENT not in name:
            return name.encode()
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        byte = BYTE_TOKEN.fullmatch(token) if self.byte_tokens else None
        if byte:
            return bytes.fromhex(byte[1])
        found = bytes(BYTES[letter] for letter in token if letter in BYTES)
        return found if found.decode(errors="replace") == name else None

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def decodes_byte_tokens(self) -> bool:
        letter = self.tokenizer.convert_tokens_to_ids("<0x41>")
        known = letter is not None and self.tokenizer.convert_ids_to_tokens(letter) == "<0x41>"
        return known and letter is not None and self.text_of([letter]) == "A"


class StopStrings:
    """Let text through until one of the stop strings is complete.

    What may be the beginning of a stop string is held back. Of several, the one that is
    complete first counts, so that the result does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was met); it is not part of the text."""
        text = self.held + text
        ends = [(text.find(s) + len(s), -len(s)) for s in self.stops if s in text]
        if ends:
            end, negative_length = min(ends)
            self.held = ""
            return text[: end + negative_length], True
        hold = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        rest, self.held = self.held, ""
        return rest


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
