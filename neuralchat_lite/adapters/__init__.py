"""Fine-tuned adapters (PEFT LoRA), and checkpoints that they are merged into."""
