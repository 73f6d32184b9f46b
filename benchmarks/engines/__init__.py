"""The engines that are compared: a table of them, an environment and a worker process for each."""
