"""A Hugging Face folder as a GGUF file in bf16, which llama.cpp then quantizes itself.

One tensor is in memory at a time. There is no tokenizer in it: token ids go in and come out.
"""

import json
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Stored bits of a checkpoint -> fp32
TO_FP32 = {
    "BF16": lambda raw: (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32),
    "F16": lambda raw: raw.view(np.float16).astype(np.float32),
    "F32": lambda raw: raw.view(np.float32),
}
MODEL_TYPES = ("mistral", "llama")


def write_gguf(checkpoint, path):
    """Raises ValueError for a model that is not Llama's or Mistral's: others have other names."""
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in MODEL_TYPES or config.get("rope_scaling"):
        raise ValueError(
            f"model_type {config['model_type']!r} with rope_scaling {config.get('rope_scaling')} "
            f"cannot be written: expected one of {MODEL_TYPES} with plain rotary embeddings; "
            "convert the model with llama.cpp's own convert_hf_to_gguf.py"
        )
    tensors = dict(stored_tensors(checkpoint))
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    describe(writer, config)
    for name, (_, _, shape, _) in tensors.items():
        kind = file_dtype(shape)
        writer.add_tensor_info(
            gguf_name(name),
            shape if kind != gguf.GGMLQuantizationType.BF16 else (shape[0], shape[1] * 2),
            np.dtype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.uint8),
            int(np.prod(shape)) * (4 if kind == gguf.GGMLQuantizationType.F32 else 2),
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (file, dtype, shape, offsets) in tensors.items():
        raw = np.memmap(file, np.uint8, "r", offsets[0], offsets[1] - offsets[0])
        values = TO_FP32[dtype](raw).reshape(shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            values = interleaved(values, config[key])
        if file_dtype(shape) == gguf.GGMLQuantizationType.BF16:
            values = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()


def describe(writer, config):
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_name("benchmark")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")


def stored_tensors(checkpoint):
    """Each (name, (file, dtype, shape, [first byte, last byte])) of the safetensors files."""
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for tensor, entry in header.items():
            if tensor != "__metadata__" and not tensor.endswith("inv_freq"):
                offsets = [8 + length + offset for offset in entry["data_offsets"]]
                yield tensor, (path, entry["dtype"], tuple(entry["shape"]), offsets)


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{BLOCK_NAMES[module]}.{kind}"


def file_dtype(shape):
    kinds = gguf.GGMLQuantizationType
    return kinds.BF16 if len(shape) == 2 else kinds.F32


def interleaved(weight, heads):
    """llama.cpp rotates neighbours, Hugging Face halves: the rows of each head change places."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
