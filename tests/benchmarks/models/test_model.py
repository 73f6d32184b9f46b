"""Two runs have measured the same model when its digest is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.models.kept import COMPLETE
from benchmarks.models.model import checkpoint_digest
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import config_digest


def test_the_digest_of_a_checkpoint_is_that_of_its_shape_and_changes_with_it(
    tmp_path: Path, tiny_shape: dict[str, Any]
) -> None:
    folder = random_model("tiny", tmp_path)
    assert checkpoint_digest(folder) == config_digest(tiny_shape)
    (folder / COMPLETE).unlink()  # now it is a checkpoint like any other
    as_real = checkpoint_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    assert checkpoint_digest(folder) != as_real
