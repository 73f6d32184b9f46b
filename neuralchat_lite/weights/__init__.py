"""Weights at rest: checkpoints read, the packed format, the cache, names on the hub."""
