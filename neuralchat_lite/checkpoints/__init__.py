"""Unquantized weights: where they come from, and what identifies them."""
