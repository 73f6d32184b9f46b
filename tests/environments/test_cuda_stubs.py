"""Stand-ins for CUDA's libraries, made for a little library that stands for torch's."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from neuralchat_lite.environments.cuda_stubs import NO_DEVICE, make_stubs
from neuralchat_lite.errors import EngineError

CUDART = "int cudaMalloc(void) { return 0; } int cudaGetDeviceCount(int *n) { *n = 8; return 0; }"
CUBLAS = "int cublasCreate_v2(void) { return 0; }"
TORCH = """
int cudaMalloc(void); int cudaGetDeviceCount(int *); int cublasCreate_v2(void);
int allocate(void) { return cudaMalloc(); }
int count(int *n) { return cudaGetDeviceCount(n); }
int create(void) { return cublasCreate_v2(); }
"""


def compile_library(path: Path, code: str, *options: str) -> None:
    source = path.parent / "source.c"
    source.write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source, *options], check=True)
    source.unlink()


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """With torch/lib/libtorch.so, linked against a CUDA runtime (with symbol versions) and
    cuBLAS (without), which then go away."""
    folder = tmp_path / "torch/lib"
    folder.mkdir(parents=True)
    script = tmp_path / "versions.map"
    script.write_text("libcudart.so.12 { global: *; };\n")
    runtime, blas = folder / "libcudart.so.12", folder / "libcublas.so.12"
    compile_library(
        runtime, CUDART, "-Wl,-soname,libcudart.so.12", f"-Wl,--version-script={script}"
    )
    compile_library(blas, CUBLAS, "-Wl,-soname,libcublas.so.12")
    compile_library(folder / "libtorch.so", TORCH, runtime, blas, "-Wl,-rpath,$ORIGIN")
    runtime.unlink()
    blas.unlink()
    return tmp_path


def test_a_library_loads_with_stubs_and_finds_no_device(site_packages: Path) -> None:
    with pytest.raises(OSError, match="libcudart"):
        ctypes.CDLL(str(site_packages / "torch/lib/libtorch.so"))
    made = make_stubs(site_packages)
    assert [path.name for path in made] == ["libcublas.so.12", "libcudart.so.12"]
    library = ctypes.CDLL(str(site_packages / "torch/lib/libtorch.so"))
    devices = ctypes.c_int(5)
    assert library.allocate() == library.create() == NO_DEVICE
    assert library.count(ctypes.byref(devices)) == NO_DEVICE
    assert devices.value == 0


def test_libraries_that_are_there_are_left_alone(site_packages: Path) -> None:
    ours = site_packages / "nvidia/cublas/lib/libcublas.so.12"
    ours.parent.mkdir(parents=True)
    ours.touch()
    assert [path.name for path in make_stubs(site_packages)] == ["libcudart.so.12"]
    assert make_stubs(site_packages) == []


def test_a_missing_compiler_is_said(site_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(EngineError, match=r"need no-such-compiler, .* install gcc"):
        make_stubs(site_packages)
