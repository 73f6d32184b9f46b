"""Several answers to one prompt, each with a seed of its own."""

from __future__ import annotations

from dataclasses import replace

from neuralchat_lite.generation.options import GenerationOptions

SEEDS = 2**64


def options_of_answers(options: GenerationOptions) -> list[GenerationOptions]:
    """For each of the `n` answers its options: answer i has the seed `seed + i`, or without a seed
    one from the system."""
    if options.n == 1:
        return [options]
    seeds = [
        None if options.seed is None else (options.seed + index) % SEEDS
        for index in range(options.n)
    ]
    return [replace(options, n=1, seed=seed) for seed in seeds]
