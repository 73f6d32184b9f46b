"""The decoder: a Llama-shaped model over the kernels, and its key/value cache."""
