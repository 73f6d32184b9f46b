"""What a script for intel-extension-for-transformers becomes: see migrate_from_itrex.md.

python examples/migrate_from_itrex.py [MODEL]
"""

import sys
from pathlib import Path

import neuralchat_lite as ncl
from neuralchat_lite import WeightOnlyQuantConfig

NANO = Path(__file__).parent / "nano" / "model"
SYSTEM = "You are a math assistant. You solve problems step by step and give the correct answer."


def generate_response(model: ncl.Model, system_input: str, user_input: str) -> str:
    messages = [
        {"role": "system", "content": system_input},
        {"role": "user", "content": user_input},
    ]
    return model.generate(messages, max_new_tokens=1000).text


def main() -> None:
    config = WeightOnlyQuantConfig(compute_dtype="bf16", weight_dtype="int4")
    model = ncl.load(sys.argv[1] if len(sys.argv) > 1 else NANO, config)
    print(generate_response(model, SYSTEM, "calculate 100 + 520 + 60"))


if __name__ == "__main__":
    main()
