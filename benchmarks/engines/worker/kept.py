"""What an engine has already computed of a sequence is not computed again.

For engines that are asked for logits; they also say beforehand how long a sequence may become.
"""

STEP = 2048  # positions


def kept(had, ids, tail):
    """How many of the first ids an engine can keep after it was fed `had`, when the last `tail`
    ids must be fed to get their logits."""
    most = min(len(had), len(ids) - tail)
    for index in range(most):
        if had[index] != ids[index]:
            return index
    return most


def room(count):
    """`count` positions or more, in steps: a larger cache must be computed anew."""
    return -(-count // STEP) * STEP
