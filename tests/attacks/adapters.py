"""Mutated LoRA adapters: configuration, patterns, matrices.

Right is what PEFT merges on transformers' own model in fp32, rounded to the base's dtype and then
like ours.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from neuralchat_lite.files.names import CHAT_TEMPLATES, TOKENIZER

from . import bases, nasty, oracle
from .checkpoints import Mutator, any_file, ask, load, mutate, setter, verdict
from .headers import spoil_weights
from .outcome import LIBRARY, ORACLE, Case, Outcome, attempt

FAMILIES = ("mistral", "llama")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all": {"target_modules": ALL, "lora_alpha": 3, "use_rslora": True},
    "pattern": {"target_modules": r".*layers\.1\..*_proj"},
    "ranks": {"target_modules": ["k_proj", "up_proj"], "rank_pattern": {"up_proj": 2}},
}
DEFAULTS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 10,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "base_model_name_or_path": "somebody/base",
}
PATTERNS = (
    *(r"(a+)+$", r"(.*)*x", r"(?:.*){30}x", r"(\w+\.?)+!", r"([a-z_.]*)*[0-9]{9}", r"((.*)*)*z"),
    *(r"(.+)+q_prox", r"(?:a?){5000}a{5000}", r"(model|mod|el|\.)*!", r"(x+x+)+y", "(" * 300),
    *("[", "\\", "(?P<a>", "x{99999999999}", "(?R)", "", ".", ".*", "q_proj|v_proj", "*"),
    *(
        r".*\.q_proj",
        r"model\.layers\.\d+\.self_attn\.[qv]_proj",
        r"(?i).*Q_PROJ",
        r"(?<=\.)q_proj",
    ),
    *(
        r".*(?:q|v)_proj$",
        r"^.*(layers\.0).*$",
        r"(.*\.)?v_proj",
        "all-linear",
        "\x00",
        "é",
        "\ud800",
    ),
)
KEYS = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "bias"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "use_dora"),
    *("peft_type", "modules_to_save", "target_parameters", "trainable_token_indices", "megatron"),
    *("base_model_name_or_path", "fan_in_fan_out", "lora_bias", "layer_replication", "revision"),
)


def make_adapter(base: Path, form: str, folder: Path) -> Path:
    """Write the adapter of a form for a base: the modules that its target_modules name."""
    import re

    config = {**DEFAULTS, **FORMS[form]}
    targets = config["target_modules"]
    weights = {}
    for spec in bases.tensors_of(base):
        module = spec.name.removesuffix(".weight")
        if spec.role != "linear":
            continue
        if isinstance(targets, str):
            chosen = re.fullmatch(targets, module) is not None
        else:
            chosen = module.rpartition(".")[2] in targets
        if not chosen:
            continue
        rank = config.get("rank_pattern", {}).get(module.rpartition(".")[2], config["r"])
        for half, shape in (("A", (rank, spec.shape[1])), ("B", (spec.shape[0], rank))):
            name = f"base_model.model.{module}.lora_{half}.weight"
            weights[name] = bases.random_tensor(name, shape, "linear")
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(folder: Path) -> Path:
    return folder / "adapter_config.json"


def config_value(rng: random.Random, folder: Path) -> str:
    return nasty.edit_json(config_of(folder), lambda value: nasty.change_place(rng, value))


def config_key(rng: random.Random, folder: Path) -> str:
    return nasty.edit_json(config_of(folder), setter(rng.choice(KEYS), rng.choice(nasty.VALUES)))


def pattern(rng: random.Random, folder: Path) -> str:
    key = rng.choice(["target_modules"] * 3 + ["exclude_modules", "rank_pattern", "alpha_pattern"])
    value: Any = rng.choice(PATTERNS)
    if key.endswith("_pattern"):
        value = {value: rng.choice([1, 2, 4, 8, 0.5, 1000])}
    elif rng.random() < 0.2:
        key, value = "layers_pattern", [value]
        nasty.edit_json(
            config_of(folder), setter("layers_to_transform", rng.choice([0, [0, 1], 9]))
        )
    return nasty.edit_json(config_of(folder), setter(key, value))


def layers(rng: random.Random, folder: Path) -> str:
    value = rng.choice([0, 1, [1], [0, 1], [], [7], [-1], 2**63, [10**400], [True], "1", [[0]]])
    return nasty.edit_json(config_of(folder), setter("layers_to_transform", value))


def weights(rng: random.Random, folder: Path) -> str:
    path = folder / "adapter_model.safetensors"
    return spoil_weights(rng, path) if path.exists() else "no weights"


def other_file(rng: random.Random, folder: Path) -> str:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json")
    names += ("adapter_model.bin", "config.json", "special_tokens_map.json", "model.safetensors")
    path = folder / rng.choice(names)
    if (bases.NANO / path.name).exists() and rng.random() < 0.5:
        shutil.copyfile(bases.NANO / path.name, path)
    else:
        path.write_text(nasty.dumps(rng.choice(nasty.VALUES)))
    return f"{path.name} added"


MUTATORS: dict[str, tuple[Mutator, int]] = {
    "config value": (config_value, 5),
    "config key": (config_key, 4),
    "pattern": (pattern, 6),
    "layers": (layers, 2),
    "weights": (weights, 8),
    "other file": (other_file, 2),
    "any file": (any_file, 3),
}


class Adapters:
    """Load a base with a mutated adapter merged into it, and ask it."""

    name = "adapters"

    def prepare(self, root: Path) -> None:
        self.bases = {name: bases.make_base(name, root / name) for name in FAMILIES}
        self.adapters = {
            (name, form): make_adapter(folder, form, root / f"{name}-{form}")
            for name, folder in self.bases.items()
            for form in FORMS
        }
        self.known = {
            (name, form): ask(load(self.bases[name], "int8", root / "cache", adapters=[adapter]))
            for (name, form), adapter in self.adapters.items()
        }

    def unmutated(self) -> list[str]:
        """What is wrong with the answers of the adapters themselves."""
        found = []
        for (name, form), answer in self.known.items():
            outcome = self.verdict(name, form, self.adapters[name, form], answer)
            if outcome.kind != "right" or outcome.detail:
                found.append(f"{name} with {form}: {outcome}")
        return found

    def run(self, case: Case) -> Outcome:
        rng = random.Random(f"{self.name}/{case.seed}")
        name, form = rng.choice(list(self.adapters))
        folder = case.place / form
        shutil.copytree(self.adapters[name, form], folder)
        case.done += [name, form, *mutate(rng, folder, MUTATORS)]
        cache = case.place / "cache"
        case.begins(LIBRARY)
        answer, failed = attempt(
            lambda: ask(load(self.bases[name], "int8", cache, adapters=[folder]))
        )
        case.begins(ORACLE)
        return failed or self.verdict(name, form, folder, answer)

    def verdict(self, name: str, form: str, folder: Path, answer: oracle.Answer) -> Outcome:
        base = self.bases[name]
        tokenizer = folder.with_name(f"{folder.name}-tokenizer")
        gather_tokenizer(base, folder, tokenizer)
        # The order of a sum may round a bf16 weight to its neighbour.
        return verdict(
            answer, self.known[name, form], tokenizer, merged_witness(base, folder), 1e-2
        )


def gather_tokenizer(base: Path, adapter: Path, target: Path) -> None:
    """The tokenizer that counts: the adapter's files, or the base's when it has none. A template
    alone goes with the base's."""
    own = [path for path in adapter.iterdir() if path.name in TOKENIZER and path.exists()]
    target.mkdir()
    if all(path.name in CHAT_TEMPLATES for path in own):
        for name in TOKENIZER:
            if (base / name).exists() and not (own and name in CHAT_TEMPLATES):
                shutil.copyfile(base / name, target / name)
    for path in own:
        shutil.copyfile(path, target / path.name)


def merged_witness(base: Path, adapter: Path) -> Callable[[], Any]:
    def make() -> Any:
        import peft

        model = oracle.load_witness(base)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
            except Exception as error:
                raise oracle.NoWitness(f"{type(error).__name__}: {str(error)[:200]}") from None
        if missing := [str(each.message) for each in said if "missing" in str(each.message)]:
            raise oracle.NoWitness(missing[0][:200])
        stored = json.loads((base / "config.json").read_text())["model_type"]
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                dtype = bases.DTYPES[stored]
                module.weight = torch.nn.Parameter(module.weight.detach().to(dtype).float(), False)
        return oracle.round_weights(model, "int8")

    return make
