"""`neuralchat-lite doctor`: what this machine has, what runs on it, and why."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from neuralchat_lite import installed_version
from neuralchat_lite.cli.terminal import say
from neuralchat_lite.errors import NeuralchatError
from neuralchat_lite.files.progress import size_text

WIDTH = 19  # of the longest name, "unquantized x fp32:"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")


def doctor() -> None:
    """Say what this machine has, what will run on it, and why."""
    for name, value in findings():
        say(f"{name + ':':<{WIDTH}} {value}")


def findings() -> Iterator[tuple[str, str]]:
    """(name, finding) one after the other. Measuring the bandwidth takes about a second."""
    from neuralchat_lite.kernels.cpu import cpu_model

    yield "version", f"neuralchat_lite {installed_version()}, Python {platform.python_version()}"
    yield "packages", ", ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    yield "CPU", cpu_model()
    try:
        yield from kernel_findings()
    except (ImportError, NeuralchatError) as error:  # doctor reports a problem and goes on
        yield "kernels", f"not usable: {error}"
    yield from cache_findings()


def kernel_findings() -> Iterator[tuple[str, str]]:
    from neuralchat_lite.kernels import native, runtime

    yield "CPU features", ", ".join(native.cpu_features()) or "none that a kernel uses"
    isa, threads = native.isa(), native.threads()
    yield "kernels", f"{isa.value}: {isa.why}"
    yield "threads", f"{threads.value}: {threads.why}"
    for weights, compute in runtime.PRODUCTS:
        yield f"{weights} x {compute}", str(runtime.product(weights, compute))
    bandwidth = native.measure_bandwidth(1.0)
    yield "bandwidth", f"{size_text(bandwidth)}/s with {threads.value} threads, measured now"


def cache_findings() -> Iterator[tuple[str, str]]:
    from neuralchat_lite.packed.cache import cache_root, entries

    try:
        found = entries()
    except NeuralchatError as error:
        yield "cache", str(error)
        return
    size = size_text(sum(entry.disk_bytes for entry in found))
    yield "cache", f"{cache_root()}: {len(found)} model{'s' * (len(found) != 1)}, {size}"


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
