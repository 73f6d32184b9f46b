"""Ask a model something and watch the answer appear: python examples/quickstart.py [MODEL]

MODEL is a folder or a hub name, such as Intel/neural-chat-7b-v3-2; without it, the little model
beside this file.
"""

import sys
from pathlib import Path

import neuralchat_lite as ncl
from neuralchat_lite import WeightOnlyQuantConfig

NANO = Path(__file__).parent / "nano" / "model"
SYSTEM = "You are a math assistant. You solve problems step by step and give the correct answer."


def main() -> None:
    config = WeightOnlyQuantConfig(weight_dtype="int4", compute_dtype="bf16")
    model = ncl.load(sys.argv[1] if len(sys.argv) > 1 else NANO, config)
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "calculate 100 + 520 + 60"},
    ]
    for piece in model.stream(messages, max_new_tokens=300):
        print(piece.text, end="", flush=True)
    timings = piece.timings
    print(f"\n\n{timings.tokens_per_second:.0f} tokens/s, finished by {piece.finish_reason}")


if __name__ == "__main__":
    main()
