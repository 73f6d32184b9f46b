"""Engines side by side: latency and accuracy, measured with their conditions, in JSON lines."""
