"""Our log-likelihoods beside the evaluation harness' own Hugging Face backend, weight for weight.

A quantized model is written back as the fp32 checkpoint that its codes and scales stand for. The
harness runs that through transformers; we run the quantized model itself, computing in fp32. Both
get the same requests, so every log-likelihood must agree to 1e-3, and every item be scored the
same: rights and wrongs exactly, shares of probability to 1e-3.

Where a model is far from what it was trained on, fp32 itself may be off by more than that: the
harness in fp64 (--precision fp64) then says which of the two is.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import neuralchat_lite as ncl
from benchmarks.accuracy.measures import MEASURES, leaderboard_task
from neuralchat_lite.files.names import SIDECARS
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.foreign import KEY
from neuralchat_lite.packed.format import open_packed

TOLERANCE = 1e-3
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}
TASKS = [name for name, measure in MEASURES.items() if measure is leaderboard_task]


@dataclass(frozen=True)
class Agreement:
    """One task, through both backends.

    cut: requests that lost their beginning, since the model's context is shorter
    largest: greatest difference of a log-likelihood (1 for texts that differ)
    ours, theirs: the mean scores; items_differ: items that are not scored the same
    """

    task: str
    items: int
    requests: int
    cut: int
    largest: float
    ours: float
    theirs: float
    items_differ: int

    @property
    def holds(self) -> bool:
        return self.largest <= TOLERANCE and not self.items_differ


def same(left: float, right: float) -> bool:
    """Whether two scores of an item agree: exactly if they are 0 or 1, else within TOLERANCE. NaN
    agrees with NaN."""
    if {left, right} <= {0.0, 1.0}:
        return left == right
    return abs(left - right) <= TOLERANCE or (math.isnan(left) and math.isnan(right))


def write_dequantized(quantized: Path, folder: Path) -> None:
    """The fp32 Hugging Face checkpoint that a quantized folder stands for."""
    from safetensors.torch import save_file

    packed = open_packed(quantized)
    tensors = {}
    for spec in packed.architecture.tensors():
        name = "lm_head.weight" if spec.role == "lm_head" else spec.name
        found = packed.weight(name)
        weight = dequantize(found) if isinstance(found, PackedMatrix) else found.float()
        tensors[name] = weight.contiguous().clone()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in SIDECARS:
        if (quantized / name).exists():
            (folder / name).write_bytes((quantized / name).read_bytes())
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    config.pop(KEY, None)
    # The quantized head is no longer the embedding, even where it once was.
    config |= {"tie_word_embeddings": False, "dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def backends(model: str, scratch: Path, precision: str = "fp32") -> tuple[Any, Any]:
    """Our harness model over int4 weights, and the harness' own over the same.

    precision: that the harness' own computes in; ours is always fp32
    """
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.accuracy.lm_eval_model import NeuralchatLM

    config = {"weight_dtype": "int4", "group_size": 32, "compute_dtype": "fp32"}
    loaded = ncl.load(model, config, cache_dir=scratch / "cache")
    folder = scratch / "dequantized"
    write_dequantized(loaded.folder, folder)
    ours = NeuralchatLM(loaded)
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=PRECISIONS[precision])
    theirs = HFLM(
        pretrained=reference,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        backend="causal",
        max_length=ours.max_length,
        batch_size=1,
    )
    theirs.softmax_dtype = PRECISIONS[precision]
    return ours, theirs


def compare_task(name: str, data: Path, limit: int, ours: Any, theirs: Any) -> Agreement:
    """Ask both the same task."""
    import lm_eval

    from benchmarks.accuracy.lm_eval_tasks import TASKS as SOURCES
    from benchmarks.accuracy.lm_eval_tasks import local_tasks

    answers, scores = [], []
    before = ours.cut
    for backend in (ours, theirs):
        tasks = {task.task_name: task for task in local_tasks(name, data, limit)}
        found = lm_eval.evaluate(backend, {"tasks": tasks, "groups": {}}, bootstrap_iters=0)
        samples = [
            sample
            for task in tasks
            for sample in found["samples"][task]
            if sample["filter"] == SOURCES[name].filter
        ]
        answers.append([answer[0] for sample in samples for answer in sample["resps"]])
        scores.append([float(sample[SOURCES[name].metric]) for sample in samples])
    pairs = list(zip(*answers, strict=True))
    return Agreement(
        name,
        len(samples),
        len(pairs),
        ours.cut - before,
        max(difference(left, right) for left, right in pairs),
        fmean(scores[0]),
        fmean(scores[1]),
        sum(not same(left, right) for left, right in zip(*scores, strict=True)),
    )


def difference(left: Any, right: Any) -> float:
    """Of two answers: log-likelihoods with whether they are greedy, or texts."""
    if isinstance(left, str):
        return float(left.strip() != right.strip())
    return abs(left[0] - right[0]) if left[1] == right[1] else float("inf")
