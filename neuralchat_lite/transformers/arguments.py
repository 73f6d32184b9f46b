"""The arguments of `from_pretrained`: which have an effect, which are refused, what they mean."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.spellings import FLOATS, HALF
from neuralchat_lite.transformers.configs import CalibratedConfig, LegacyConfig
from neuralchat_lite.values import shown, suggestion

# Arguments of ITREX, IPEX and transformers that have no effect, whatever their value: there is one
# engine, weights are always mapped, and code from a model is never run.
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
FOR_LOAD = ("calibration", "context_length", "kv_cache_dtype", "threads")  # passed on to `load`
HONOURED = (
    *FOR_LOAD,
    "adapters",
    "cache_dir",
    "device_map",
    "dtype",
    "gguf_file",  # transformers' word
    "load_in_4bit",
    "load_in_8bit",
    "local_files_only",
    "model_file",  # ITREX's
    "quantization_config",
    "revision",
    "token",
    "torch_dtype",
    "use_auth_token",  # the former name of `token`
)
# Arguments that have an effect in transformers and are not supported -> what to do instead. A value
# that is empty or false is accepted.
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


def check_names(
    function: str, options: Mapping[str, Any], honoured: Iterable[str], idle: frozenset[str]
) -> None:
    """Raise ConfigError for an unknown argument; warn once about those without effect.

    It must be called by the function itself, so that the warning shows the line of the caller.
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


# Arguments of `generate` as other libraries call them -> those of transformers. Names that are
# alike mean something else, or there are two of them.
CALLED_ELSEWHERE = {
    "assistant": "assistant_model",
    "draft_model": "assistant_model",
    "max_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "n": "num_return_sequences",
    "num_predict": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "stop": "stop_strings",
    "stop_sequences": "stop_strings",
}


def generation_hint(unknown: Iterable[str], arguments: Iterable[str]) -> str:
    """What was probably meant by arguments of `generate` that transformers does not know.

    arguments: the names that are not options of GenerationConfig
    """
    import transformers

    theirs: Any = transformers.GenerationConfig  # untyped
    options = [name for name in theirs().to_dict() if not name.startswith("_")]
    names = sorted({*options, *arguments})
    hints = (name + meant(name, names) for name in unknown)
    return ", ".join(hint for hint in hints if "(" in hint)


def meant(name: str, names: list[str]) -> str:
    if name == "seed":
        return " (call transformers.set_seed before)"
    known = CALLED_ELSEWHERE.get(name)
    return f" (did you mean {known!r}?)" if known else suggestion(name, names)


def check_device(device_map: Any) -> None:
    devices = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for device in devices:
        if str(device).partition(":")[0] not in CPU_MAPS:
            raise ConfigError(
                f"device_map={shown(device_map)} names a device other than the CPU, and this "
                "library runs on CPUs: leave it out"
            )


def dtype_of(options: Mapping[str, Any]) -> str | None:
    """The precision asked for: "fp32", "bf16", "auto" or None."""
    given = [options[name] for name in ("dtype", "torch_dtype") if options.get(name) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ConfigError(
            f"dtype={shown(given[0])} and torch_dtype={shown(given[1])} differ: give one"
        )
    if not given or given[0] == "auto":
        return given[0] if given else None
    name = FLOATS.get(str(given[0]))
    if str(given[0]) in HALF:
        raise ConfigError(
            f"dtype {str(given[0])!r} has too small a range for activations: use torch.bfloat16"
        )
    if name is None:
        raise ConfigError(
            f"dtype must be torch.float32, torch.bfloat16 or 'auto', got {shown(given[0])}: for "
            "int4 or int8 give a quantization_config"
        )
    return name


def file_of(options: Mapping[str, Any]) -> str | None:
    """The file in the folder or the repository that is the model. Raises ConfigError."""
    given = {name: options[name] for name in ("model_file", "gguf_file") if options.get(name)}
    if len({str(name) for name in given.values()}) > 1:
        raise ConfigError(f"model_file and gguf_file differ: {shown(given)}; give one of them")
    file = next(iter(given.values()), None)
    return None if file is None else str(file)


def own_dtype(folder: Path) -> str:
    """The precision of a checkpoint. Weights stored as fp16 are computed in fp32."""
    checkpoint = open_checkpoint(folder)
    return FLOATS.get(str(checkpoint.dtype(checkpoint.architecture.embedding_name)), "fp32")


def calibration_of(options: Mapping[str, Any]) -> Any:
    """The texts to calibrate with: those of the argument, else those that a configuration of ITREX
    names."""
    given = options.get("quantization_config")
    if options.get("calibration") is None and isinstance(given, CalibratedConfig):
        return given.to_calibration()
    return options.get("calibration")


def config_of(options: Mapping[str, Any]) -> WeightOnlyQuantConfig | None:
    """The quantization asked for, or None. Raises ConfigError for more than one."""
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
