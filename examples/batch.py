"""Answer the questions of a file, one a line, as JSON lines: python examples/batch.py FILE [MODEL]

Threads share one model. Their operations take turns on the CPU, so threads make nothing faster;
they keep slow consumers, such as a network, from holding up the next answer.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import neuralchat_lite as ncl

NANO = Path(__file__).parent / "nano" / "model"


def main() -> None:
    questions = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    model = ncl.load(sys.argv[2] if len(sys.argv) > 2 else NANO)

    def answer(question: str) -> dict[str, object]:
        reply = model.generate([{"role": "user", "content": question}], max_new_tokens=300)
        return {
            "question": question,
            "answer": reply.text,
            "finish_reason": reply.finish_reason,
            "new_tokens": reply.timings.new_tokens,
        }

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(answer, filter(None, questions)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
