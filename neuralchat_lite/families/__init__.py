"""What a model family is: the names and shapes of its tensors, read from config.json."""
