"""A GGUF file as a source of weights: llama.cpp's format, one file with weights, settings and
tokenizer.

header: what the file says, checked. blocks: its codes in ours. names: its tensors and their rows.
metadata: config.json from it. vocabulary and pretokenizers: tokenizer.json from it. source: all
of it as a `Source`.
"""
