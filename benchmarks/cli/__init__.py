"""The commands of `python -m benchmarks`, and how they show errors."""
