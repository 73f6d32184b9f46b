"""What a chat model's answer means: its content, its reasoning, and the tools that it calls."""
