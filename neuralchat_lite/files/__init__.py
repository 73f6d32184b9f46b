"""Files on disk: names, safetensors, digests, and folders that are written whole or not at all."""
