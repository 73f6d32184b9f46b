"""Files on disk, whatever they mean: names, safetensors, digests, folders written whole."""
