"""Seeds: independent, stable random streams, named by what they belong to."""

from __future__ import annotations

import hashlib


def stream(*names: object) -> int:
    """63-bit seed from a sequence of names, the same in every process and on every machine.

    Arms, learning rates, recipes and names of suites never appear among the names of a stream that several arms share.
    Differences between arms are therefore paired (docs/design.md, "Seeds").

    >>> stream("source", "digits", 0) == stream("source", "digits", 0)
    True
    """
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
