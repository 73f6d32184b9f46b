"""From a prompt to text: prompts, the one decode loop, sampling, text that can be shown."""
