"""`AutoModelForCausalLM.from_pretrained` and `pipeline`, as scripts for ITREX call them."""

from __future__ import annotations

import os
import warnings
from typing import Any

from neuralchat_lite.api import load
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.loading import resolve_adapters
from neuralchat_lite.transformers.arguments import (
    FOR_LOAD,
    HONOURED,
    REFUSED,
    WITHOUT_EFFECT,
    calibration_of,
    check_device,
    check_names,
    config_of,
    dtype_of,
    file_of,
    own_dtype,
)
from neuralchat_lite.transformers.modeling import NativeForCausalLM, named_class
from neuralchat_lite.values import shown


class AutoModelForCausalLM:
    """Loads models by `from_pretrained`. It has no instances, as in transformers."""

    def __init__(self) -> None:
        raise TypeError("use AutoModelForCausalLM.from_pretrained(name_or_folder, ...)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> NativeForCausalLM:
        """Load a checkpoint or a quantized folder, for `generate` of transformers.

        model_file, gguf_file: the name of a GGUF file in the folder or the repository; its own
            codes are used, and dtype is the precision of the activations
        quantization_config: a WeightOnlyQuantConfig, a configuration of ITREX such as RtnConfig or
            GPTQConfig, or a dictionary of options
        load_in_4bit, load_in_8bit: the same as WeightOnlyQuantConfig(weight_dtype="int4") or "int8"
        dtype, torch_dtype: for a model that is not quantized, the precision of the computation:
            fp32 (the default), bf16, or "auto" for the checkpoint's own
        device_map: "cpu" or "auto"
        cache_dir: the folder of downloads, as in transformers. Quantized models are kept in
            NEURALCHAT_LITE_CACHE instead.
        revision, token, local_files_only: for a hub name, as in transformers
        adapters, calibration, context_length, kv_cache_dtype, threads: as in `neuralchat_lite.load`

        Arguments of ITREX, IPEX and transformers that have no effect here are accepted with one
        warning. Raises ConfigError for all others, and the errors of `load`.
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
        found = resolve(
            pretrained_model_name_or_path,
            options.get("revision"),
            token,
            file=file_of(options),
            **where,
        )
        tuned = resolve_adapters(options.get("adapters"), token, **where)
        weights: dict[str, Any] = {"quantization_config": config, "adapters": tuned}
        if found.folder.is_file():
            # What it stores decides the weights; the precision is that of the activations.
            compute = dtype if dtype in ("fp32", "bf16") and config is None else None
            weights = {**weights, "compute_dtype": compute}
        elif config is None and not found.packed:
            own = own_dtype(found.folder) if dtype == "auto" else dtype or "fp32"
            weights = {"dtype": own, "adapters": tuned}
        elif dtype not in (None, "auto"):
            warnings.warn(
                f"dtype={shown(dtype)} has no effect on a quantized model: set compute_dtype in "
                "its quantization_config",
                stacklevel=2,
            )
        given = {**options, "calibration": None if found.packed else calibration_of(options)}
        more = {name: given[name] for name in FOR_LOAD if given.get(name) is not None}
        model = load(found, **weights, **more)
        if "context_length" not in more:
            # In transformers only the model's positions limit the length of a text.
            model.decoder.context_length = model.architecture.max_positions
        return named_class(model.architecture.model_type)(model)


def pipeline(task: str | None = None, model: Any = None, **options: Any) -> Any:
    """The `pipeline` of transformers. A model given by name or folder runs on the native kernels.

    model_kwargs and the arguments of `from_pretrained` are used to load such a model. Raises
    ConfigError if it is given for a task other than "text-generation".
    """
    import transformers

    theirs: Any = transformers.pipeline  # typed with one overload for each task
    if not isinstance(model, str | os.PathLike):
        return theirs(task, model=model, **options)
    if task != "text-generation":
        raise ConfigError(
            f"task {task!r} is not available from a causal language model: ask for "
            "'text-generation', or use the pipeline of transformers"
        )
    names = [name for name in options if name in HONOURED or name in WITHOUT_EFFECT]
    loading = {**options.pop("model_kwargs", {}), **{name: options.pop(name) for name in names}}
    loaded = AutoModelForCausalLM.from_pretrained(model, **loading)
    options.setdefault("tokenizer", loaded.native.tokenizer)
    return theirs(task, model=loaded, **options)
