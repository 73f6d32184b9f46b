"""The wheel, repaired as for a release, runs in an environment that has never seen this tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from .patience import patience

ROOT = Path(__file__).parents[1]
# patchelf lies beside the interpreter, whatever the PATH of whoever runs the tests.
SEARCHED = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
SECONDS = 300  # on a machine of usual speed; the build takes half a minute

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PATH": SEARCHED},
        capture_output=True,
        text=True,
        timeout=patience(SECONDS),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repaired wheel. Skips where a tool for it is missing."""
    pytest.importorskip("auditwheel", reason="the test extra has it")
    for tool in ("g++", "patchelf"):
        if shutil.which(tool, path=SEARCHED) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    # A build folder of its own: the tree's is the one that this test's own process runs from.
    run(
        *(*pip, "wheel", ROOT, "--no-deps", "--quiet", "-w", folder / "built"),
        *("--config-settings", f"build-dir={folder / 'build'}"),
        cwd=folder,
    )
    [built] = (folder / "built").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", built, "-w", folder / "repaired", cwd=folder)
    [repaired] = (folder / "repaired").glob("*.whl")
    return repaired


def test_the_wheel_is_for_manylinux_typed_and_without_sources(wheel: Path) -> None:
    assert "manylinux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "neuralchat_lite/py.typed" in names
    assert any(name.startswith("neuralchat_lite/kernels/_native") for name in names)
    page = {"index.html", "main.js", "style.css"}
    assert {f"neuralchat_lite/server/page/{name}" for name in page} <= set(names)
    strangers = ("tests/", "benchmarks/", "neuralchat_lite/csrc/")
    assert not [name for name in names if name.startswith(strangers)]


def test_doctor_runs_from_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "empty", cwd=tmp_path)
    python = tmp_path / "empty/bin/python"
    # torch and the rest come from this environment, to save gigabytes. Its own .pth files, such as
    # the one that points to this tree, do not count there.
    own = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    packages = [sysconfig.get_path("purelib"), *(p for p in sys.path if "site-packages" in p)]
    (own / "shared.pth").write_text("\n".join(dict.fromkeys(packages)) + "\n")
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    place = run(
        python, "-c", "import neuralchat_lite; print(neuralchat_lite.__file__)", cwd=tmp_path
    )
    assert Path(place.strip()).is_relative_to(own)
    found = run(tmp_path / "empty/bin/neuralchat-lite", "doctor", cwd=tmp_path)
    lines = dict(line.split(":", 1) for line in found.splitlines() if ":" in line)
    assert "not usable" not in lines["kernels"]
    assert "GB/s" in lines["bandwidth"]
