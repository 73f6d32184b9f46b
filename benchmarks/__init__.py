"""Engines side by side on one machine: how fast, how much memory, how much accuracy is lost."""
