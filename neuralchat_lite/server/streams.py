"""Generators of parts, begun before an answer's status is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator


async def begun(parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Run a generator up to its first part, which is empty: what it raises until then, such as a
    prompt that is too long, still becomes a status. Whoever takes it closes it."""
    try:
        await parts.__anext__()
    except BaseException:
        await parts.aclose()
        raise
    return parts
