"""How fast one token is decoded, beside what the memory bus allows: python benchmarks/decode.py

Random weights of a model's shape are quantized straight from a generator (so that no 14 GB lie on
disk), loaded, and decoded. Bandwidth is probed between the samples, in the same process with the
same threads, and the ratio is that of the medians: the share of the roofline.

    roofline = bandwidth / bytes per token        ratio = tokens per second / roofline

Not timed: tokenizing and choosing a token, which random weights make meaningless.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from models.shapes import SHAPES  # beside this script

import neuralchat_lite
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.engines.native import open_native
from neuralchat_lite.kernels import cpu, native
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


def memory(kind: str) -> int:
    """Resident bytes of this process: RssAnon is its own, RssFile what it has mapped."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {kind}")


@contextmanager
def peak_memory(kind: str = "RssAnon") -> Iterator[list[int]]:
    """Yields a list that, at the end, holds the growth of memory at its highest."""
    start, result, done = memory(kind), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            result[0] = max(result[0], memory(kind) - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield result
    finally:
        done.set()
        watcher.join()


def quantize(folder: Path, name: str, config: WeightOnlyQuantConfig) -> None:
    last = [time.monotonic()]

    def progress(step: Any) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"  {step.done / step.total:.0%} {step.name}", flush=True)

    start = time.perf_counter()
    with peak_memory() as peak:
        quantize_checkpoint(RandomCheckpoint(SHAPES[name]), config, folder, progress=progress)
    print(
        f"quantized in {time.perf_counter() - start:.0f} s, generating the weights included; "
        f"peak memory beyond mapped files {peak[0] / 1e9:.2f} GB"
    )


def load(folder: Path, config: WeightOnlyQuantConfig) -> Any:
    """Load twice: the first run may still have to read the file, the second finds it in memory."""
    for temperature in ("first", "warm"):
        gc.collect()
        before, start = memory("RssAnon"), time.perf_counter()
        decoder = open_native(open_packed(folder), config, context_length=None).decoder
        seconds, grown = time.perf_counter() - start, memory("RssAnon") - before
        print(f"loaded ({temperature}) in {seconds:.2f} s, {grown / 1e6:.1f} MB of memory")
    return decoder


def decode(decoder: Any, context: int, samples: int, tokens: int) -> None:
    cache = decoder.new_cache(context + samples * tokens + 8)
    ids = torch.randint(0, decoder.architecture.vocab_size, (context,))
    start = time.perf_counter()
    decoder.forward(ids, cache)
    seconds = time.perf_counter() - start
    print(f"prefill: {context} tokens in {seconds:.2f} s, {context / seconds:.1f} tokens/s")
    for token in range(3):  # the first tokens find the weights still being mapped
        decoder.forward([token], cache)
    per_token, bandwidths = [], [native.measure_bandwidth(0.5)]
    for _ in range(samples):
        start = time.perf_counter()
        for token in range(tokens):
            decoder.forward([token], cache)
        per_token.append((time.perf_counter() - start) / tokens)
        bandwidths.append(native.measure_bandwidth(0.5))
    size = decoder.bytes_per_token(context + samples * tokens // 2)
    rate, bandwidth = 1 / statistics.median(per_token), statistics.median(bandwidths)
    spread = (max(bandwidths) - min(bandwidths)) / bandwidth
    print(f"bytes per token: {size / 1e9:.3f} GB, of them weights {decoder.weight_bytes / 1e9:.3f}")
    print(
        f"bandwidth: {bandwidth / 1e9:.1f} GB/s, median of {len(bandwidths)} probes, "
        f"spread {spread:.0%}" + (" - the machine was busy" if spread > 0.15 else "")
    )
    print(f"roofline: {bandwidth / size:.2f} tokens/s")
    print(
        f"decoded: {rate:.2f} tokens/s, median of {samples} samples of {tokens} tokens "
        f"({1 / max(per_token):.2f} to {1 / min(per_token):.2f}), {rate * size / 1e9:.1f} GB/s"
    )
    print(f"ratio: {rate * size / bandwidth:.2f} of the roofline")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--weight-dtype", default="int4")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--scheme", default="sym")
    parser.add_argument("--compute-dtype", default="bf16")
    parser.add_argument("--threads", type=int, help="default: physical cores")
    parser.add_argument("--context", type=int, default=32, help="tokens before the decoded ones")
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in each sample")
    parser.add_argument("--folder", type=Path, help="keep the quantized model here and reuse it")
    options = parser.parse_args()

    config = WeightOnlyQuantConfig(
        weight_dtype=options.weight_dtype,
        group_size=options.group_size,
        scheme=options.scheme,
        compute_dtype=options.compute_dtype,
    )
    if options.threads:
        native.set_threads(cpu.check_threads(options.threads, "--threads"))
    isa, threads = native.isa(), native.threads()
    print(f"{cpu.cpu_model()}; kernels {isa.value} ({isa.why}); threads {threads.value}")
    print(
        f"neuralchat_lite {neuralchat_lite.__version__}, torch {torch.__version__}, "
        f"python {platform.python_version()}; shape {options.shape}, {json.dumps(config.to_dict())}"
    )
    with tempfile.TemporaryDirectory(prefix="neuralchat-bench-") as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not is_packed(folder):
            quantize(folder, options.shape, config)
        decode(load(folder, config), options.context, options.samples, options.tokens)


if __name__ == "__main__":
    main()
