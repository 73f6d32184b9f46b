"""A conversation in the terminal: python examples/stream_chat.py [MODEL]

What was said stays in the key/value cache, so that a turn costs only its new tokens; the line
after each answer says how many of the prompt's tokens were there already. An empty line leaves.
"""

import sys
from pathlib import Path

import neuralchat_lite as ncl

NANO = Path(__file__).parent / "nano" / "model"
SYSTEM = "You are a math assistant. You solve problems step by step and give the correct answer."


def main() -> None:
    model = ncl.load(sys.argv[1] if len(sys.argv) > 1 else NANO)
    chat = model.conversation(SYSTEM, max_new_tokens=300)
    while message := input("you: "):
        print("model: ", end="")
        for piece in chat.stream(message):
            print(piece.text, end="", flush=True)
        spent = piece.timings
        print(f"\n({spent.cached_tokens} of {spent.prompt_tokens} prompt tokens were in the cache)")


if __name__ == "__main__":
    main()
