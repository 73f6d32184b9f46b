"""Speed and memory: engines take turns on the same prompts, on a machine that is watched."""
