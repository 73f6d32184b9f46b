"""Scripts that run in other environments: nothing of neuralchat_lite is imported there."""
