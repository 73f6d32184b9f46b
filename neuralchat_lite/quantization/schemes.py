"""Which schemes go with which weight types and algorithms."""

from __future__ import annotations

from collections.abc import Sequence

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.settings import Override

SEARCHED = "int4"  # the weight type whose scales are searched for
SEARCHED_SCHEME = "affine8"  # what it has unless another is asked for, and it alone
WITH_MINIMA = ("affine", "affine8")
FLOAT_ZEROS = ("RTN", "HQQ", "AWQ", "TEQ")  # algorithms that can have minima
HEAD = "lm_head"  # the module of the output head


def refuse_schemes(
    algorithm: str, scheme: str, overrides: Sequence[Override], weight_dtype: str, head: str
) -> None:
    """Raise ConfigError for a scheme that an algorithm or a weight type does not have.

    weight_dtype, head: of the matrices without an override, and of the output head
    """
    if algorithm not in FLOAT_ZEROS:
        # The head has no block, and is rounded to nearest.
        for each in (scheme, *(each.scheme for each in overrides if each.pattern != HEAD)):
            if each in WITH_MINIMA:
                raise ConfigError(
                    f"algorithm={algorithm!r} gives integer zero points, and scheme={each!r} has "
                    f"minima: use scheme='asym', or one of {list(FLOAT_ZEROS)}; the head alone may "
                    f"have minima, by overrides={{{HEAD!r}: {{'scheme': {each!r}}}}}"
                )
    for override in overrides:
        found = override.weight_dtype or (head if override.pattern == HEAD else weight_dtype)
        if override.scheme == SEARCHED_SCHEME and found != SEARCHED:
            raise not_searched(f"overrides[{override.pattern!r}]: ", found)


def not_searched(where: str, weight_dtype: str) -> ConfigError:
    return ConfigError(
        f"{where}scheme={SEARCHED_SCHEME!r} is for weight_dtype={SEARCHED!r}, got "
        f"weight_dtype={weight_dtype!r}: use scheme='asym' or 'affine'"
    )
