"""An environment of a local wheel: no network."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from neuralchat_lite.environments.environment import Environment

FACTS = f"""\
# about: a package for tests
# download: 12 MB
# disk: 30 MB
# download with CUDA: 4 GB
# disk with CUDA: 7 GB
# python: 3.{sys.version_info[1]}
# cpu: x1 x2
"""


def write_wheel(folder: Path, version: str) -> Path:
    """A wheel of the package tiny, with its version in tiny.VERSION."""
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"tiny-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture
def described(tmp_path: Path) -> Environment:
    """An environment of a local wheel, not made yet."""
    descriptions = tmp_path / "requirements"
    descriptions.mkdir()
    wheel = write_wheel(tmp_path, "1.0")
    (descriptions / "tiny.no-deps.txt").write_text(f"tiny @ {wheel.as_uri()}\n")
    (descriptions / "tiny.txt").write_text(FACTS)
    return Environment.described("tiny", descriptions, tmp_path / "root", "make tiny")


def pretend_ready(environment: Environment) -> None:
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)
    environment.write_stamp(requirements=environment.digest())
