"""The decoder over the kernels: layers, keys and values, rotary embedding."""
