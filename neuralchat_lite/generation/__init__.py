"""From a prompt to text: prompts, sequences, sampling, the decode loop, conversations."""
