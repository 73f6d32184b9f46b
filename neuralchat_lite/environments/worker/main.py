"""A worker that loads a model with the packages of its environment and answers with logits.

The script must run with Python 3.9 and old versions of torch and transformers, and imports nothing
of neuralchat_lite. `engines/remote.py` holds the other end of its pipes.
"""

from __future__ import annotations

import base64
import copy
import inspect
import sys
from importlib import metadata
from typing import Any

from serving import serve  # beside this script

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
# Names in WeightOnlyQuantConfig -> names in the engine.
QBITS_WEIGHTS = {"int4_clip": "int4_clip", "int8": "int8"}
IPEX_WEIGHTS = {"int4_clip": "INT4", "int8": "INT8"}
IPEX_COMPUTE = {"fp32": "NONE", "bf16": "BF16", "int8": "INT8"}
IPEX_SCHEMES = {"sym": "SYMMETRIC", "asym": "ASYMMETRIC"}
PACKAGES = (
    "torch",
    "transformers",
    "intel-extension-for-pytorch",
    "intel-extension-for-transformers",
    "neural-compressor",
)


class Session:
    """The model and its key/value caches, under the numbers that the caller gives them."""

    def __init__(self) -> None:
        self.step: Any = None
        self.caches: dict[int, Any] = {}

    def load(
        self,
        loader: str,
        folder: str,
        threads: int | None,
        rope: dict[str, Any],
        dtype: str | None = None,
        quantization: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load the model of a folder. Returns {"versions", "threads", "flags"} for a report."""
        import torch
        from stepping import Stepper

        if threads is not None:
            torch.set_num_threads(threads)
        flags: dict[str, str] = {}
        config = checkpoint_config(folder, rope)
        model = LOADERS[loader](folder, config, dtype, quantization, flags)
        if threads is not None:  # some libraries change it while loading
            torch.set_num_threads(threads)
        self.step = Stepper(model.eval())
        return {"versions": versions(), "threads": torch.get_num_threads(), "flags": flags}

    def forward(
        self,
        cache: int,
        length: int,
        ids: list[int],
        drop: list[int],
        all_logits: bool = False,
    ) -> dict[str, Any]:
        """Feed ids after the first `length` positions of a cache. A length of 0 starts a new one.

        drop: numbers of caches that are no longer needed
        Returns the fp32 logits of the last token, or of each token with all_logits, in base64.
        """
        from stepping import Positions

        for number in drop:
            self.caches.pop(number, None)
        if length == 0:
            self.caches[cache] = Positions()
        if cache not in self.caches:
            raise KeyError(f"there is no cache {cache}: start it with length 0")
        logits = self.step(ids, self.caches[cache], length, all_logits).contiguous().numpy()
        return {"logits": base64.b64encode(logits.tobytes()).decode("ascii")}

    def copy(self, source: int, target: int) -> dict[str, Any]:
        """A second cache, under its own number, that holds what the first does."""
        self.caches[target] = copy.deepcopy(self.caches[source])
        return {}


def checkpoint_config(folder: str, rope: dict[str, Any]) -> Any:
    """The configuration of a folder, with rotary parameters that old versions do not read there."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The signature tells, not the attribute rope_parameters: old versions keep unknown keys too.
    if "rope_theta" in inspect.signature(type(config).__init__).parameters:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config.rope_theta = rope["rope_theta"]
        plain = scaling["rope_type"] == "default"
        config.rope_scaling = None if plain else {**scaling, "type": scaling["rope_type"]}
    return config


def pretrained(model_class: Any, folder: str, config: Any, dtype: str, **options: Any) -> Any:
    import torch
    import transformers

    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    options = {name: getattr(torch, DTYPES[dtype]), **options}
    return model_class.from_pretrained(
        folder, config=config, local_files_only=True, trust_remote_code=False, **options
    )


def load_transformers(
    folder: str, config: Any, dtype: str | None, quantization: Any, flags: dict[str, str]
) -> Any:
    """transformers without further packages: the torch engine in its own process."""
    from transformers import AutoModelForCausalLM

    assert dtype is not None and quantization is None
    return pretrained(AutoModelForCausalLM, folder, config, dtype)


def load_ipex(
    folder: str, config: Any, dtype: str | None, quantization: Any, flags: dict[str, str]
) -> Any:
    """ipex.optimize in bf16 or fp32, or IPEX's own weight-only quantization."""
    import intel_extension_for_pytorch as ipex
    import torch
    from transformers import AutoModelForCausalLM

    model = pretrained(AutoModelForCausalLM, folder, config, dtype or "fp32").eval()
    if quantization is not None:
        return quantize_ipex(model, quantization, flags)
    assert dtype is not None
    options = {"level": "O1", "auto_kernel_selection": True}
    if dtype == "bf16" and not ipex._C.onednn_has_bf16_support():
        options["weights_prepack"] = False
        flags["weights_prepack=False"] = "oneDNN cannot pack bf16 weights without AVX-512"
    flags["ipex.optimize"] = ", ".join(f"{key}={value}" for key, value in options.items())
    return ipex.optimize(model, dtype=getattr(torch, DTYPES[dtype]), inplace=True, **options)


def quantize_ipex(model: Any, quantization: dict[str, Any], flags: dict[str, str]) -> Any:
    import torch
    from intel_extension_for_pytorch.quantization import (
        WoqActQuantMode,
        WoqLowpMode,
        WoqWeightDtype,
        WoqWeightQScheme,
        convert,
        get_weight_only_quant_qconfig_mapping,
        prepare,
    )

    names = {
        "weight_dtype": IPEX_WEIGHTS[quantization["weight_dtype"]],
        "lowp_mode": IPEX_COMPUTE[quantization["compute_dtype"]],
        "weight_qscheme": IPEX_SCHEMES[quantization["scheme"]],
    }
    mapping = get_weight_only_quant_qconfig_mapping(
        weight_dtype=getattr(WoqWeightDtype, names["weight_dtype"]),
        lowp_mode=getattr(WoqLowpMode, names["lowp_mode"]),
        weight_qscheme=getattr(WoqWeightQScheme, names["weight_qscheme"]),
        act_quant_mode=WoqActQuantMode.PER_BATCH_IC_BLOCK_SYM,
        group_size=quantization["group_size"],
    )
    flags["weight-only"] = ", ".join(f"{key}={value}" for key, value in names.items())
    example = torch.ones((1, 8), dtype=torch.long)
    prepared = prepare(model, mapping, example_inputs=(example,), inplace=True)
    return convert(prepared, inplace=True)


def load_itrex(
    folder: str, config: Any, dtype: str | None, quantization: Any, flags: dict[str, str]
) -> Any:
    """ITREX's round-to-nearest with QBits kernels."""
    import torch
    from intel_extension_for_transformers import qbits
    from intel_extension_for_transformers.transformers import AutoModelForCausalLM, RtnConfig

    # By default QBits divides its work by the number of cores. The parts of threads that torch does
    # not have are then never computed, and logits are wrong or NaN.
    qbits.set_qbits_threads(torch.get_num_threads())
    options = {
        "bits": 8 if quantization["weight_dtype"] == "int8" else 4,
        "weight_dtype": QBITS_WEIGHTS[quantization["weight_dtype"]],
        "compute_dtype": quantization["compute_dtype"],
        "scale_dtype": quantization["scale_dtype"],
        "group_size": quantization["group_size"],
        "sym": quantization["scheme"] == "sym",
    }
    flags["RtnConfig"] = ", ".join(f"{key}={value}" for key, value in options.items())
    return pretrained(
        AutoModelForCausalLM,
        folder,
        config,
        "fp32",
        quantization_config=RtnConfig(**options),
        use_neural_speed=False,
        device_map="cpu",
    )


LOADERS = {"transformers": load_transformers, "ipex": load_ipex, "itrex": load_itrex}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    # This folder goes to the end of the path, so that packages never import our modules by mistake.
    sys.path.append(sys.path.pop(0))
    session = Session()
    serve({"load": session.load, "forward": session.forward, "copy": session.copy})


if __name__ == "__main__":
    main()
