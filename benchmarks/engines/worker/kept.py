"""What an engine has of a sequence already need not be computed again.

For engines that are asked for logits; they also say beforehand how long a sequence may become.
"""

STEP = 2048  # positions


def kept(had, ids, tail):
    """How many of the first ids an engine can keep that has fed `had`, when the last `tail` ids
    must go through it to give their logits."""
    most = min(len(had), len(ids) - tail)
    for index in range(most):
        if had[index] != ids[index]:
            return index
    return most


def room(count):
    """So many positions or more, in steps: making room anew means to compute all again."""
    return -(-count // STEP) * STEP
