"""Mutated quantized folders: manifest, configuration, header, bytes, stamps.

A folder with a file that has another digest than its manifest says must be refused. Of others,
right is what transformers' own model gives with the folder's config.json and its weights,
dequantized: mutations may have brought the manifest up to date, or changed a file that it leaves to
its owner.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import neuralchat_lite
from neuralchat_lite.errors import NeuralchatError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.format import open_packed

from . import bases, checkpoints, nasty, oracle
from .checkpoints import Mutator, any_file, ask, load, mutate, same, setter, verdict
from .headers import spoil_weights
from .outcome import LIBRARY, ORACLE, Case, Outcome, attempt

FAMILIES = ("mistral", "llama")
MANIFEST, WEIGHTS, STAMP = "manifest.json", "model.safetensors", ".verified"
CACHED = "cached"
MANIFEST_KEYS = ("format_version", "adapters", "key", "files", "quantization", "source", "x")


def manifest_value(rng: random.Random, folder: Path) -> str:
    return nasty.edit_json(folder / MANIFEST, lambda value: nasty.change_place(rng, value))


def manifest_key(rng: random.Random, folder: Path) -> str:
    value = rng.choice([*nasty.VALUES, ["a"], [{"hub": "a/b"}], [{"files": {}}]])
    return nasty.edit_json(folder / MANIFEST, setter(rng.choice(MANIFEST_KEYS), value))


def quantization(rng: random.Random, folder: Path) -> str:
    path = folder / "quantization_config.json"
    return nasty.edit_json(path, lambda value: nasty.change_place(rng, value))


def weights(rng: random.Random, folder: Path) -> str:
    path = folder / WEIGHTS
    return spoil_weights(rng, path) if path.exists() else "no weights"


def payload(rng: random.Random, folder: Path) -> str:
    """Bits of codes and scales, in place: the same inode and size, and the time set back."""
    path = folder / WEIGHTS
    if not path.is_file():
        return "no weights"
    before = path.stat()
    with path.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start >= before.st_size:
            return "no weights"
        place = rng.randrange(start, before.st_size)
        file.seek(place)
        (old,) = file.read(1)
        file.seek(place)
        file.write(bytes([old ^ (1 << rng.randrange(8))]))
    back = rng.random() < 0.7
    if back:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"a bit of byte {place} flipped in place" + (", its time set back" if back else "")


def stamp(rng: random.Random, folder: Path) -> str:
    path = folder / STAMP
    act = rng.randrange(4)
    if act == 0:
        path.unlink(missing_ok=True)
        return "no stamp"
    if act == 1:
        if path.is_dir():
            return "the stamp is a folder"
        path.unlink(missing_ok=True)
        path.write_text(nasty.dumps(rng.choice(nasty.VALUES)))
        return "another stamp"
    if act == 2 and path.is_file():
        return nasty.edit_json(path, lambda value: nasty.change_place(rng, value))
    path.touch()
    return nasty.spoil_file(rng, path)


def configuration(rng: random.Random, folder: Path) -> str:
    """A checkpoint's mutations of what is beside the weights."""
    kinds = ("config value", "config key", "rope", "window", "generation config", "tokenizer.json")
    kinds += ("vocabulary", "tokenizer config", "template", "other file")
    kind = rng.choice(kinds)
    try:
        return checkpoints.MUTATORS[kind][0](rng, folder)
    except (OSError, KeyError, TypeError):
        return f"{kind}: left as an earlier mutation made it"


MUTATORS: dict[str, tuple[Mutator, int]] = {
    "manifest value": (manifest_value, 3),
    "manifest key": (manifest_key, 2),
    "quantization": (quantization, 3),
    "weights": (weights, 7),
    "payload": (payload, 5),
    "stamp": (stamp, 3),
    "configuration": (configuration, 5),
    "any file": (any_file, 4),
}


def seal(folder: Path) -> None:
    """Bring sizes and digests of the manifest up to date, as somebody would who means harm."""
    if not nasty.is_plain(folder / MANIFEST):
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            path = folder / name
            if nasty.is_plain(path):
                data = path.read_bytes()
                entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        options = folder / "quantization_config.json"
        if nasty.is_plain(options):
            manifest["quantization"] = json.loads(options.read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest))
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        return


class Quantized:
    """Open a mutated quantized folder, a saved copy or an entry of a cache, and ask it."""

    name = "quantized"

    def prepare(self, root: Path) -> None:
        self.folders: dict[tuple[str, str, str], Path] = {}
        self.known: dict[tuple[str, str, str], oracle.Answer] = {}
        self.bases = {name: bases.make_base(name, root / name) for name in FAMILIES}
        for name, base in self.bases.items():
            for weight_dtype in ("int4", "int8"):
                made = root / f"{name}-{weight_dtype}"
                neuralchat_lite.quantize(base, {"weight_dtype": weight_dtype}, made)
                answer = ask(open_quantized(made))
                saved = root / f"{name}-{weight_dtype}-saved"
                open_quantized(made).save_pretrained(saved)
                entry = load(base, weight_dtype, root / f"cache-{name}-{weight_dtype}").folder
                for kind, folder in (("quantized", made), ("saved", saved), (CACHED, entry)):
                    self.folders[name, weight_dtype, kind] = folder
                    self.known[name, weight_dtype, kind] = answer

    def unmutated(self) -> list[str]:
        """What is wrong with the answers of the folders themselves."""
        found = []
        for key, folder in self.folders.items():
            answer = ask(open_quantized(folder))
            outcome = verdict(answer, self.known[key], folder, dequantized_witness(folder))
            if outcome.kind != "right" or outcome.detail or not same(answer, self.known[key]):
                found.append(f"{key}: {outcome}")
        return found

    def run(self, case: Case) -> Outcome:
        rng = random.Random(f"{self.name}/{case.seed}")
        key = rng.choice(list(self.folders))
        origin = self.folders[key]
        if key[2] == CACHED:  # an entry of a cache, asked for by its checkpoint
            cache = case.place / "cache"
            shutil.copytree(origin.parent, cache)
            folder = cache / origin.name
            ask_for = functools.partial(load, self.bases[key[0]], key[1], cache)
        else:
            folder = case.place / key[0]
            shutil.copytree(origin, folder)
            ask_for = functools.partial(open_quantized, folder)
        case.done += [*key]
        if rng.random() < 0.6:  # verified where it lies, before it is changed
            ask_for()
            case.done.append("opened before")
        case.done += mutate(rng, folder, MUTATORS)
        if rng.random() < 0.3:
            seal(folder)
            case.done.append("the manifest brought up to date")
        case.begins(LIBRARY)
        answer, failed = attempt(lambda: ask(ask_for()))
        case.begins(ORACLE)
        if failed is not None:
            return failed
        if damaged := damaged_file(folder):
            return Outcome("wrong", "damage goes unseen", f"{damaged} has another digest")
        # The tokenizer of a checkpoint is its own, not the copy in the cache.
        tokenizer = self.bases[key[0]] if key[2] == CACHED else folder
        return verdict(answer, self.known[key], tokenizer, dequantized_witness(folder))


def damaged_file(folder: Path) -> str | None:
    """The first file whose digest is not the manifest's."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name, entry in manifest["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry["sha256"]:
            return str(name)
    return None


def open_quantized(folder: Path) -> Any:
    return neuralchat_lite.load(folder, compute_dtype="fp32", threads=1)


def dequantized_witness(folder: Path) -> Callable[[], Any]:
    """transformers' model as config.json describes it, with the folder's weights."""

    def make() -> Any:
        import transformers

        try:
            packed = open_packed(folder, verify="never")
            config = oracle.config_of(folder)
            config._attn_implementation = "eager"
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except NeuralchatError:
            raise
        except Exception as error:
            raise oracle.NoWitness(f"{type(error).__name__}: {str(error)[:200]}") from None
        parameters = dict(model.named_parameters())
        tied = packed.architecture.tied
        for spec in packed.architecture.tensors():
            head = spec.role == "lm_head"
            found = packed.weight("lm_head.weight" if head else spec.name)
            weight = dequantize(found) if isinstance(found, PackedMatrix) else found.float()
            if head and tied:
                model.lm_head.weight = torch.nn.Parameter(weight.clone(), False)
            elif spec.name not in parameters or parameters[spec.name].shape != weight.shape:
                raise oracle.NoWitness(f"transformers has no {spec.name} of this shape")
            else:
                parameters[spec.name].data.copy_(weight)
        return model.eval()

    return make
