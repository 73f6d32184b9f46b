"""Whole-model engines behind one protocol, chosen by name."""
