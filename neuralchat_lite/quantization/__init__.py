"""From float weights to integer codes: the configuration, and the algorithms."""
