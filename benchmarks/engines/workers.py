"""An engine in a process of its own, and the format that it loads: what every measurement needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.table import ENGINES, Variant
from benchmarks.latency import machine
from benchmarks.models.shapes import COMPLETE, LITTER, checkpoint_digest, in_one_piece
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.environments.worker import serving
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.config_json import read_architecture

WORKER = Path(__file__).parent / "worker" / "main.py"
PREPARE_SECONDS, LOAD_SECONDS = 3600.0, 600.0


@dataclass(frozen=True)
class Model:
    """The checkpoint that all engines run.

    name: how rows call it
    folder: of the checkpoint; formats of the engines lie beside it, in `formats`
    digest: what two formats must share to be the same
    """

    name: str
    folder: Path
    formats: Path
    digest: str
    architecture: Architecture

    @classmethod
    def at(cls, name: str, folder: Path, root: Path, digest: str | None = None) -> Model:
        """digest: of the weights too, where it matters what they say; else that of their shapes,
        which is all that speed depends on"""
        folder = folder.absolute()  # workers run in another one
        digest = digest or checkpoint_digest(folder)
        formats = formats_folder(name, digest, root)
        return cls(name, folder, formats, digest, read_architecture(folder))

    def stored(self, variant: Variant) -> Path:
        """The folder that a variant loads."""
        if variant.stored is None:
            return self.folder
        return self.formats / f"{variant.engine}-{variant.stored}"

    def is_stored(self, variant: Variant) -> bool:
        """Whether that folder is there and whole."""
        return variant.stored is None or (self.stored(variant) / COMPLETE).exists()

    def kv_bytes(self, context: int, item: int) -> int:
        """Keys and values that decoding one token at `context` reads, of one sequence."""
        arch = self.architecture
        seen = sum(min(context, window or context) for window in arch.windows)
        return 2 * seen * arch.kv_size * item


def formats_folder(name: str, digest: str, root: Path) -> Path:
    """Where the formats of a model lie."""
    return root / f"{name.replace('/', '_')}-{digest[:12]}"


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
            "PYTHONPATH": str(machine.ROOT) if own else None,
        },
        folder=litter,
    )


def convert(variant: Variant, model: Model, start: Callable[[], Worker]) -> None:
    """Let the engine write its format of the model. Raises EngineError with its own words."""

    def write(folder: Path) -> None:
        folder.rmdir()  # an engine makes its own, and may insist on that
        with start() as worker:
            worker.call(
                "prepare",
                timeout=PREPARE_SECONDS,
                checkpoint=str(model.folder),
                folder=str(folder),
                options=dict(variant.options),
            )

    in_one_piece(model.stored(variant), write, model.digest)
