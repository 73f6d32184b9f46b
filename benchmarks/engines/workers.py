"""An engine in a process of its own, and the format that it loads; every measurement needs both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.engines.table import ENGINES, Variant
from benchmarks.models.kept import LITTER, write_whole
from benchmarks.models.model import Model
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.environments.worker import serving

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "worker" / "main.py"
PREPARE_SECONDS, LOAD_SECONDS = 3600.0, 600.0


def start_worker(variant: Variant, model: Model, threads: int, python: Path) -> Worker:
    """The worker of a variant's engine, under the Python of its environment."""
    engine = ENGINES[variant.engine]
    own = engine.environment is None
    litter = model.formats / LITTER
    litter.mkdir(parents=True, exist_ok=True)
    return Worker(
        [
            str(python),
            "-s",  # no packages of the user's own folder
            str(WORKER),
            str(Path(serving.__file__).parent),
            str(engine.path),
        ],
        name=variant.label,
        variables={
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "NEURALCHAT_LITE_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT) if own else None,
        },
        folder=litter,
    )


def convert(variant: Variant, model: Model, start: Callable[[], Worker]) -> None:
    """Let the engine write its format of the model. Raises EngineError with its own words."""

    def write(folder: Path) -> None:
        folder.rmdir()  # some engines refuse a folder that exists
        with start() as worker:
            worker.call(
                "prepare",
                timeout=PREPARE_SECONDS,
                checkpoint=str(model.folder),
                folder=str(folder),
                options=dict(variant.options),
            )

    write_whole(model.stored(variant), write, model.digest)
