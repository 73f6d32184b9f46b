"""Kernels for instructions that this CPU may lack, proved bit for bit on any CPU with AVX2.

The folders of csrc/kernels are compiled against SIMDe's plain functions instead of the intrinsics
(intrinsics/immintrin.h), without the flags of their instructions, and driver.cpp compares their
products with the contract of all sets. A new folder takes part by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from neuralchat_lite.kernels import native

from ...patience import patience

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "neuralchat_lite" / "csrc"
COMPILER = os.environ.get("CXX", "g++")
# Debian's libsimde-dev, or what `make prove` puts beside the environment.
SIMDE = [Path("/usr/include"), Path(sys.prefix) / "simde/usr/include"]

AVX2 = ("-mavx2", "-mfma", "-mf16c")
# Folders that are compiled with the compiler's own intrinsics: tests/kernels run them natively on
# every CPU that can run a proof. All other folders are emulated.
NATIVE = {"generic": (), "avx2": AVX2}
EMULATED = sorted(
    folder.name
    for folder in (SOURCES / "kernels").iterdir()
    if folder.is_dir() and folder.name not in NATIVE
)
LANGUAGE = ("-std=c++20", "-ffp-contract=off", "-I", SOURCES)
# Most of the time goes to the compiler: -O1 takes four times as long, and runs a second less.
FLAGS = (*LANGUAGE, "-Og", "-Wall", "-Wextra", "-Werror", "-Wno-psabi")


def simde_headers() -> Path | None:
    return next((path for path in SIMDE if (path / "simde/x86/avx512.h").exists()), None)


STORAGE = [
    *(
        (weight_dtype, scheme)
        for weight_dtype in ("int4", "int8")
        for scheme in ("sym", "asym", "affine")
    ),
    ("int4", "affine8"),
]


@pytest.fixture(scope="session")
def simde() -> Path:
    """The folder of SIMDe's headers; skips where a proof cannot be run."""
    if "avx2" not in native.usable_isas():
        pytest.skip("this CPU lacks AVX2, in which the others are emulated")
    if not shutil.which(COMPILER):
        pytest.skip(f"there is no compiler {COMPILER}")
    headers = simde_headers()
    if headers is None:
        pytest.skip("no headers of SIMDe: run `make prove`, or install libsimde-dev")
    return headers


def run(command: list[str | Path], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **options)


class Builder:
    """Objects of sources, made once, and programs of them."""

    def __init__(self, folder: Path, simde: Path) -> None:
        self.folder, self.simde = folder, simde

    def command(self, source: Path, target: Path, kind: str) -> list[str | Path]:
        flags: list[str | Path] = [*FLAGS]
        if kind not in NATIVE:
            flags += [*AVX2, "-I", HERE / "intrinsics", "-isystem", self.simde]
        return [COMPILER, *flags, *NATIVE.get(kind, ()), "-c", source, "-o", target]

    def compile(self, source: Path, kind: str) -> Path:
        """The object of a source, compiled as a file of the set `kind`."""
        target = self.folder / f"{kind}-{source.stem}.o"
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            made = run(self.command(source, unfinished, kind))
            assert made.returncode == 0, made.stderr
            unfinished.rename(target)
        return target

    def objects(self) -> list[Path]:
        """Everything but what a test replaces: all sets, the table of them, the driver."""
        sources = [(SOURCES / "runtime/cpu.cpp", "generic"), (HERE / "driver.cpp", "generic")]
        for kind in (*NATIVE, *EMULATED):
            sources += [(path, kind) for path in sorted((SOURCES / "kernels" / kind).glob("*.cpp"))]
        sources.sort(key=lambda item: -item[0].stat().st_size)  # the longest first
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(lambda item: self.compile(*item), sources))

    def link(self, objects: list[Path], program: Path) -> Path:
        if not program.exists():
            made = run([COMPILER, *objects, "-pthread", "-o", program])
            assert made.returncode == 0, made.stderr
        return program


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory, simde: Path) -> Builder:
    """Shared by the workers of pytest-xdist; the first one builds."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "proof"
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        builder = Builder(folder, simde)
        builder.link(builder.objects(), folder / "driver")
    return builder


@pytest.fixture(scope="session")
def prove(builder: Builder) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*words: str, program: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run([program or builder.folder / "driver", *words], timeout=patience(60))

    return call


@pytest.mark.parametrize(("weight_dtype", "scheme"), STORAGE)
@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", EMULATED)
def test_emulated_products_have_the_bits_of_the_contract(
    prove, name, compute_dtype, weight_dtype, scheme
):
    proved = prove(name, compute_dtype, weight_dtype, scheme)
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert int(proved.stdout.split()[0]) > 100_000, proved.stdout


@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", EMULATED)
def test_one_rounding_more_would_be_found(prove, name, compute_dtype):
    proved = prove(name, compute_dtype, "int4", "sym", "--unfused")
    assert proved.returncode == 1
    assert "output" in proved.stdout and " not " in proved.stdout


def test_the_machine_code_of_amx_has_the_bits_of_the_contract(builder, prove, tmp_path):
    """The files as they ship; their tile instructions trap, and a model does the work."""
    if "amx" in native.usable_isas():
        pytest.skip("this CPU has AMX: tests/kernels/test_native.py runs it")
    if "avx512_vnni" not in native.usable_isas():
        pytest.skip("this CPU lacks AVX-512 with VNNI, which these files use too")
    lists = (HERE.parents[2] / "CMakeLists.txt").read_text()
    flags = re.search(r"instruction_set\(amx (.*)\)", lists)[1].split()
    shipped = [COMPILER, *LANGUAGE, "-O3", *flags]
    objects = []
    for path in builder.objects():
        if path.name.startswith("amx-"):
            source = SOURCES / "kernels/amx" / f"{path.stem.removeprefix('amx-')}.cpp"
            path = tmp_path / path.name
            made = run([*shipped, "-c", source, "-o", path])
            assert made.returncode == 0, made.stderr
        objects.append(path)
    traps = builder.compile(HERE / "tile_traps.cpp", "generic")
    program = builder.link([*objects, traps], tmp_path / "driver")
    for compute_dtype in ("bf16", "int8"):
        for weight_dtype, scheme in STORAGE:
            proved = prove("amx", compute_dtype, weight_dtype, scheme, program=program)
            assert proved.returncode == 0, proved.stdout + proved.stderr


# Faults in a source: its name, the text and what takes its place, and what the driver says.
FAULTS = {
    "tiles of activations are twice as wide": (
        "amx/integer_product.cpp",
        "{64, 64, 64, 64, 32, 32, 64, 64}",
        "{64, 64, 64, 64, 64, 32, 64, 64}",
        "tdpbssd: b has a row for each word of a's",
    ),
    "tiles are not configured": (
        "amx/integer_product.cpp",
        "const ConfiguredTiles configured(kConfig);",
        "",
        "the tiles are not configured",
    ),
    "lower bytes are multiplied as signed": (
        "amx/integer_product.cpp",
        "_tile_dpbusd(3,",
        "_tile_dpbssd(3,",
        "compute bf16, 16 rows: row",
    ),
    "the largest integer is one too small": (
        "amx/activations.cpp",
        "limit = largest_integer(out.type)",
        "limit = largest_integer(out.type) - 1",
        "compute bf16, 16 rows: row",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_found(builder, prove, tmp_path, fault):
    file, text, instead, message = FAULTS[fault]
    source = SOURCES / "kernels" / file
    code = source.read_text()
    assert text in code, "the source has changed: choose another fault"
    broken = tmp_path / source.name
    broken.write_text(code.replace(text, instead))
    faulty = Builder(tmp_path, builder.simde).compile(broken, source.parent.name)
    sound = builder.compile(source, source.parent.name)
    objects = [faulty if path == sound else path for path in builder.objects()]
    program = builder.link(objects, tmp_path / "driver")
    proved = prove(source.parent.name, "bf16", "int4", "sym", program=program)
    assert proved.returncode != 0
    assert message in proved.stdout


def test_an_intrinsic_without_a_model_is_an_error_that_names_it(builder, tmp_path):
    source = tmp_path / "unknown.cpp"
    source.write_text(
        "#include <immintrin.h>\n"
        "__m512 f(const float* a) { return _mm512_rsqrt14_ps(_mm512_loadu_ps(a)); }\n"
    )
    made = run(builder.command(source, tmp_path / "unknown.o", EMULATED[0]))
    assert made.returncode != 0
    assert "_mm512_rsqrt14_ps" in made.stderr
