"""Scripts that run in other environments, and so import nothing of neuralchat_lite."""
