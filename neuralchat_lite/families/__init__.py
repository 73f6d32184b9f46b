"""Model families: what config.json says of a decoder, and how a family names and shapes its parts.

`table.py` finds a family by its `model_type`. A family's file describes one block of its decoder
(`block.py`); reading, checking and building a model all follow that description.
"""
