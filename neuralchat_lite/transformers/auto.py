"""`AutoModelForCausalLM.from_pretrained` as the old snippets call it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuralchat_lite.api import load
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.loading import resolve_adapters
from neuralchat_lite.quantization.config import FLOATS, HALF, WeightOnlyQuantConfig, suggestion
from neuralchat_lite.transformers.configs import LegacyConfig
from neuralchat_lite.transformers.modeling import NativeForCausalLM, named_class

# Switches of ITREX, IPEX and transformers that mean nothing here, whatever their value: there is
# one engine, weights are always mapped, and no code from a model is ever run.
WITHOUT_EFFECT = frozenset(
    (
        "use_neural_speed",
        "use_llm_runtime",
        "use_ipex",
        "use_cpu",
        "use_xpu",
        "trust_remote_code",
        "low_cpu_mem_usage",
        "use_safetensors",
        "attn_implementation",
        "torchscript",
        "return_dict",
        "use_cache",
        "max_memory",
        "offload_folder",
        "model_hub",
        "offload_state_dict",
        "resume_download",
        "use_flash_attention_2",
    )
)
FOR_LOAD = ("context_length", "threads")  # handed on to `load`
HONOURED = (
    *FOR_LOAD,
    "adapters",
    "cache_dir",
    "device_map",
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "local_files_only",
    "quantization_config",
    "revision",
    "token",
    "torch_dtype",
    "use_auth_token",  # what token was called once
)
# Known to transformers, and meant: refused with what to do instead, unless they say nothing.
REFUSED = {
    "config": "change config.json in a copy of the folder",
    "force_download": "download with huggingface_hub, and give the folder",
    "generation_config": "set model.generation_config afterwards",
    "output_loading_info": "model.native.report() says what was loaded",
    "proxies": "set HTTPS_PROXY in the environment",
    "subfolder": "give the folder itself",
    "variant": "give a folder with model.safetensors",
}
CPU_MAPS = ("cpu", "auto", "None")
SHORTHANDS = {"load_in_4bit": "int4", "load_in_8bit": "int8"}


class AutoModelForCausalLM:
    """Made by `from_pretrained` alone, as in transformers."""

    def __init__(self) -> None:
        raise TypeError("use AutoModelForCausalLM.from_pretrained(name_or_folder, ...)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> NativeForCausalLM:
        """Load a checkpoint or a quantized folder for transformers' `generate`.

        quantization_config: a WeightOnlyQuantConfig, RtnConfig or dictionary of options
        load_in_4bit, load_in_8bit: short for WeightOnlyQuantConfig(weight_dtype="int4"), "int8"
        dtype, torch_dtype: without any of these, the precision of the computation over the
            checkpoint's own weights: fp32 (the default), bf16, or "auto" for the checkpoint's
        device_map: "cpu" or "auto"
        cache_dir: of downloads, as in transformers; quantized models lie in NEURALCHAT_LITE_CACHE
        revision, token, local_files_only: of a hub name
        adapters, context_length, threads: as of `neuralchat_lite.load`

        Switches of the old stack without a meaning are accepted with one warning. Raises
        ConfigError for others, and what `load` raises.
        """
        for name, remedy in REFUSED.items():
            if options.pop(name, None):
                raise ConfigError(f"{name} is not supported: {remedy}")
        check_names("from_pretrained", options, HONOURED, WITHOUT_EFFECT)
        check_device(options.get("device_map"))
        config, dtype = config_of(options), dtype_of(options)
        token = options.get("token") or options.get("use_auth_token")
        where: dict[str, Any] = {
            "cache_dir": options.get("cache_dir"),
            "local_files_only": bool(options.get("local_files_only")),
        }
        found = resolve(pretrained_model_name_or_path, options.get("revision"), token, **where)
        tuned = resolve_adapters(options.get("adapters"), token, **where)
        weights: dict[str, Any] = {"quantization_config": config, "adapters": tuned}
        if config is None and not is_packed(found.folder):
            own = own_dtype(found.folder) if dtype == "auto" else dtype or "fp32"
            weights = {"dtype": own, "adapters": tuned}
        elif dtype not in (None, "auto"):
            warnings.warn(
                f"dtype={dtype!r} has no effect beside a quantization: its compute_dtype is the "
                "precision of the computation",
                stacklevel=2,
            )
        more = {name: options[name] for name in FOR_LOAD if options.get(name) is not None}
        model = load(found, **weights, **more)
        if "context_length" not in more:
            # For transformers a conversation is bounded by the model's positions alone.
            model.decoder.context_length = model.architecture.max_positions
        return named_class(model.architecture.model_type)(model)


def check_names(
    function: str, options: Mapping[str, Any], honoured: Iterable[str], idle: frozenset[str]
) -> None:
    """Refuse arguments that nobody knows; one warning for those without effect.

    Called by the function itself, so that the warning points at its caller's line.
    """
    valid = sorted((*honoured, *idle))
    for name in options:
        if name not in valid:
            raise ConfigError(
                f"{name!r} is not an argument of {function}{suggestion(name, valid)}: "
                f"expected one of {', '.join(valid)}"
            )
    given = sorted(idle & options.keys())
    if given:
        warnings.warn(f"these arguments have no effect here: {', '.join(given)}", stacklevel=3)


def check_device(device_map: Any) -> None:
    devices = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for device in devices:
        if str(device).partition(":")[0] not in CPU_MAPS:
            raise ConfigError(
                f"device_map={device_map!r} names another device than the CPU, and this library "
                "runs on CPUs: leave it out"
            )


def dtype_of(options: Mapping[str, Any]) -> str | None:
    """ "fp32", "bf16", "auto", or None when none was asked for."""
    given = [options[name] for name in ("dtype", "torch_dtype") if options.get(name) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ConfigError(f"dtype={given[0]!r} and torch_dtype={given[1]!r} differ: give one")
    if not given or given[0] == "auto":
        return given[0] if given else None
    name = FLOATS.get(str(given[0]))
    if str(given[0]) in HALF:
        raise ConfigError(
            f"dtype {str(given[0])!r} has too small a range for activations: use torch.bfloat16"
        )
    if name is None:
        raise ConfigError(
            f"dtype must be torch.float32, torch.bfloat16 or 'auto', got {given[0]!r}: for int4 or "
            "int8 give a quantization_config"
        )
    return name


def own_dtype(folder: Path) -> str:
    """The checkpoint's precision; what is stored in fp16 is computed in fp32."""
    checkpoint = open_checkpoint(folder)
    embedding = checkpoint.architecture.embedding_name
    return FLOATS.get(str(checkpoint.dtype(embedding)), "fp32")


def config_of(options: Mapping[str, Any]) -> WeightOnlyQuantConfig | None:
    """The one quantization that is asked for. Raises ConfigError for two."""
    given = options.get("quantization_config")
    short = [name for name in SHORTHANDS if options.get(name)]
    if len(short) > 1 or (short and given is not None):
        asked = [*short, *(["quantization_config"] if given is not None else [])]
        raise ConfigError(f"{' and '.join(asked)} both say how to quantize: give one of them")
    if short:
        return WeightOnlyQuantConfig(weight_dtype=SHORTHANDS[short[0]])
    if given is None or isinstance(given, WeightOnlyQuantConfig):
        return given
    if isinstance(given, LegacyConfig):
        return given.to_weight_only()
    if isinstance(given, Mapping):
        return WeightOnlyQuantConfig(**given)
    raise ConfigError(
        f"quantization_config must be a WeightOnlyQuantConfig, an RtnConfig or a dictionary of "
        f"options, got {type(given).__name__}: import one from neuralchat_lite.transformers"
    )


def pipeline(task: str | None = None, model: Any = None, **options: Any) -> Any:
    """transformers' `pipeline`; a model that is given by name or folder becomes one of ours.

    model_kwargs, and those of the options that `from_pretrained` has, are for loading it. Raises
    ConfigError for a task other than "text-generation" with such a model.
    """
    import transformers

    theirs: Any = transformers.pipeline  # an overload for each task
    if not isinstance(model, str | os.PathLike):
        return theirs(task, model=model, **options)
    if task != "text-generation":
        raise ConfigError(
            f"task {task!r} cannot be had from a model of this kind: ask for 'text-generation', or "
            "use the pipeline of transformers"
        )
    names = [name for name in options if name in HONOURED or name in WITHOUT_EFFECT]
    loading = {**options.pop("model_kwargs", {}), **{name: options.pop(name) for name in names}}
    loaded = AutoModelForCausalLM.from_pretrained(model, **loading)
    options.setdefault("tokenizer", loaded.native.tokenizer)
    return theirs(task, model=loaded, **options)
