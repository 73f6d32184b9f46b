"""The quantized model on disk: format, manifest, how it is written, and the cache."""
