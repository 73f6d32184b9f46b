"""How many held-out problems neural-chat-nano solves, by the bits of its weights.

python examples/nano/evaluate.py              prints the table of the README
python examples/nano/evaluate.py --kinds      the same by kind of problem

A problem counts when the answer's last line is "Answer: N" with the right N. No operand of the
problems occurs in training. Intervals are Wilson's, at 95 %; the models are judged on the same
problems, so that they differ by less than the intervals suggest: "changed" counts the problems
that the weights in bf16 solve and these do not, and the other way round.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from problems import KINDS, Problem, held_out_problems

import neuralchat_lite as ncl

MODEL = Path(__file__).parent / "model"
LONGEST_ANSWER = 256  # tokens
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"},
    "int8 g32": {"quantization_config": {"weight_dtype": "int8", "group_size": 32}},
    "int8 g128": {"quantization_config": {"weight_dtype": "int8", "group_size": 128}},
    "int4 g32": {"quantization_config": {"weight_dtype": "int4", "group_size": 32}},
    "int4 g128": {"quantization_config": {"weight_dtype": "int4", "group_size": 128}},
}


def solves(model: ncl.Model, problem: Problem) -> bool:
    reply = model.generate(problem.messages(), max_new_tokens=LONGEST_ANSWER)
    return reply.text.split("\n")[-1] == f"Answer: {problem.result}"


def wilson(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share."""
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return middle - half, middle + half


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--kinds", action="store_true", help="a column for each kind of problem")
    args = parser.parse_args()
    problems = held_out_problems(args.problems)
    kinds = list(KINDS) if args.kinds else []
    heads = ["weights", "MB read per token", "exact match", "95 % interval", "changed", *kinds]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    start, first = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as cache:
        for name, options in VARIANTS.items():
            model = ncl.load(args.model, cache_dir=cache, **options)
            solved = [solves(model, problem) for problem in problems]
            first = first or solved
            lost = sum(a and not b for a, b in zip(first, solved, strict=True))
            won = sum(b and not a for a, b in zip(first, solved, strict=True))
            low, high = wilson(sum(solved), len(solved))
            cells = [
                name,
                f"{model.decoder.weight_bytes / 1e6:.2f}",
                f"{sum(solved) / len(solved):.1%}",
                f"{low:.1%} to {high:.1%}",
                f"-{lost} +{won}",
            ]
            for kind in kinds:
                of_kind = [s for s, p in zip(solved, problems, strict=True) if p.kind == kind]
                cells.append(f"{sum(of_kind) / len(of_kind):.1%}")
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\n{len(problems)} problems, greedy, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
