"""Which features count as usable, on machines that are described instead of owned."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "neuralchat_lite" / "csrc"
COMPILER = os.environ.get("CXX", "g++")
NONE, YMM, ZMM, TILES, NEVER_ASKED = "0", "7", "e7", "600e7", -1


@pytest.fixture(scope="module")
def why_lacking(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function: a feature and a machine to the reason why it cannot be used, or nothing."""
    if not shutil.which(COMPILER):
        pytest.skip(f"there is no compiler {COMPILER}")
    program = tmp_path_factory.mktemp("machine") / "machine"
    sources = [HERE / "machine.cpp", SOURCES / "runtime/cpu.cpp"]
    subprocess.run([COMPILER, "-std=c++20", "-I", SOURCES, *sources, "-o", program], check=True)

    def ask(feature: str, has: bool, saved: str, error: int) -> str:
        words = [program, feature, str(int(has)), saved, str(error)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    return ask


@pytest.mark.parametrize("feature", ["avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"])
def test_a_feature_needs_the_processor_and_saved_registers(why_lacking, feature):
    assert why_lacking(feature, False, TILES, NEVER_ASKED) == f"this CPU lacks {feature}"
    enough = {"avx2": YMM, "avx512f": ZMM, "avx512_vnni": ZMM}.get(feature, TILES)
    less = {YMM: NONE, ZMM: YMM, TILES: ZMM}[enough]
    assert why_lacking(feature, True, less, NEVER_ASKED) == (
        f"the operating system does not save the registers of {feature}"
    )
    assert not why_lacking(feature, True, enough, 0 if enough == TILES else NEVER_ASKED)


@pytest.mark.parametrize("feature", ["amx_tile", "amx_int8"])
def test_tiles_are_not_usable_when_the_kernel_refuses_them(why_lacking, feature):
    assert why_lacking(feature, True, TILES, errno.EPERM) == (
        f"the kernel refused the registers of {feature} to this process "
        "(arch_prctl: Operation not permitted)"
    )


def test_an_unknown_feature_is_lacking(why_lacking):
    assert why_lacking("mmx", True, TILES, NEVER_ASKED) == "this CPU lacks mmx"
