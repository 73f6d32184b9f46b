"""Stubs of CUDA's libraries, so that a CUDA build of torch can be imported without CUDA.

They save gigabytes in an environment that computes on the CPU alone. Each CUDA library that torch
needs and that is missing is replaced by one of the same name, in which every function returns "no
CUDA device". Code that needs CUDA does not work with them. Needs a C compiler and readelf.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.errors import EngineError

NO_DEVICE = 100  # cudaErrorNoDevice
# Stem of a library -> a pattern of its functions, for binaries that do not say where a function
# comes from.
LIBRARIES = {
    "libcublas": "cublas(?!Lt)",
    "libcublasLt": "cublasLt",
    "libcudart": "cuda|__cuda",
    "libcudnn": "cudnn",
    "libcufft": "cufft",
    "libcufile": "cuFile",
    "libcupti": "cupti",
    "libcurand": "curand",
    "libcusolver": "cusolver",
    "libcusparse": "cusparse(?!Lt)",
    "libcusparseLt": "cusparseLt",
    "libnccl": "p?nccl",
    "libnvJitLink": "(__)?nvJitLink",
    "libnvToolsExt": "nvtx",
    "libnvrtc": "nvrtc",
    "libnvshmem_host": "nvshmem",
}
# Pattern of a function's name -> its body in C; the first match counts. All but the last are called
# while torch is imported.
BODIES = (
    ("cudaGetError(String|Name)", 'const char *{0}(int e) {{ return "a stub: no CUDA here"; }}'),
    (
        "__cuda(Un)?[rR]egister|__cudaInit",
        "static void *p_{0}[64]; void *{0}() {{ return p_{0}; }}",
    ),
    ("cudaGetDeviceCount", f"int {{0}}(int *n) {{{{ if (n) *n = 0; return {NO_DEVICE}; }}}}"),
    ("cuda(GetLast|PeekAtLast)Error|nvtx", "int {0}() {{ return 0; }}"),
    ("", f"int {{0}}() {{{{ return {NO_DEVICE}; }}}}"),
)


@dataclass(frozen=True)
class Symbol:
    name: str
    version: str  # "libcudart.so.12" if the binary asks for a version, else ""


def make_stubs(site_packages: Path) -> list[Path]:
    """Write a stub of each CUDA library that torch needs and that is missing; return the files.

    Raises EngineError if there is no compiler, or if it fails.
    """
    folder = site_packages / "torch/lib"
    binaries = [*folder.glob("*.so*"), *(site_packages / "torch").glob("_C*.so")]
    there = {path.name for path in site_packages.glob("nvidia/*/lib/*")}
    there |= {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    needed, undefined, defined = set[str](), set[Symbol](), set[str]()
    for binary in binaries:
        needed |= {name for name in needed_by(binary) if stem(name) in LIBRARIES}
        for symbol, is_defined in symbols_of(binary):
            if is_defined:
                defined.add(symbol.name)
            else:
                undefined.add(symbol)
    wanted = {symbol for symbol in undefined if symbol.name not in defined}
    return [compile_stub(folder, name, wanted) for name in sorted(needed - there)]


def stem(library: str) -> str:
    return library.split(".so")[0]


def needed_by(binary: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*?)\]", read_elf("--dynamic", binary))


def symbols_of(binary: Path) -> Iterator[tuple[Symbol, bool]]:
    """(symbol, whether the binary defines it)"""
    for line in read_elf("--dyn-syms", binary).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdecimal():
            continue
        name, _, version = fields[7].partition("@")
        yield Symbol(name, version.lstrip("@")), fields[6] != "UND"


def read_elf(what: str, binary: Path) -> str:
    return run(["readelf", what, "--wide", str(binary)])


def compile_stub(folder: Path, library: str, wanted: set[Symbol]) -> Path:
    own = re.compile(LIBRARIES[stem(library)])
    versions = {s.version for s in wanted if s.version and stem(s.version) == stem(library)}
    names = {s.name for s in wanted if s.version in versions}
    names |= {s.name for s in wanted if not s.version and own.match(s.name)}
    functions = [function(name) for name in sorted(names) if name.isidentifier()]
    assert len(versions) <= 1, f"{library} is asked for in several versions: {versions}"
    with tempfile.TemporaryDirectory() as temporary:
        source, script = Path(temporary, "stub.c"), Path(temporary, "stub.map")
        source.write_text("\n".join(functions) + "\n", encoding="ascii")
        command = [compiler(), "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}"]
        for version in versions:
            script.write_text(f"{version} {{ global: *; }};\n", encoding="ascii")
            command.append(f"-Wl,--version-script={script}")
        run([*command, "-o", str(folder / library), str(source)])
    return folder / library


def function(name: str) -> str:
    return next(body.format(name) for pattern, body in BODIES if re.match(pattern, name))


def compiler() -> str:
    return os.environ.get("CC") or shutil.which("cc") or "gcc"


def run(command: list[str]) -> str:
    """Run a tool of the compiler and return its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise EngineError(
            f"stubs of CUDA's libraries need {command[0]}, which is not installed: install gcc and "
            "binutils, or take torch from an index of CPU builds"
        ) from error
    except subprocess.CalledProcessError as error:
        raise EngineError(f"{command[0]} failed: {error.stderr.strip()[-300:]}") from error
    return done.stdout
