"""Answer the questions of a file, one a line, as JSON lines: python examples/batch.py FILE [MODEL]

All questions are computed together, so the weights are read once for many tokens.
"""

import json
import sys
from pathlib import Path

import neuralchat_lite as ncl

NANO = Path(__file__).parent / "nano" / "model"


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    questions = [line for line in lines if line]
    model = ncl.load(sys.argv[2] if len(sys.argv) > 2 else NANO)
    prompts = [[{"role": "user", "content": question}] for question in questions]
    for question, reply in zip(questions, model.generate(prompts, max_new_tokens=300), strict=True):
        answer = {
            "question": question,
            "answer": reply.text,
            "finish_reason": reply.finish_reason,
            "new_tokens": reply.timings.new_tokens,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
