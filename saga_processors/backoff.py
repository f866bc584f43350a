"""How long to wait before trying again. Pure."""

import zlib


def wait_ms(attempt: int, seed: str, *, initial_ms: int, max_ms: int, multiplier: float, jitter: float) -> int:
    """Wait after ``attempt`` (from 1), ms: grows by ``multiplier`` up to ``max_ms``, less a share of up to ``jitter``.

    The share keeps those that failed together from coming back together. It follows from ``seed``, so a replay waits
    exactly as long.
    """
    grown = min(initial_ms * multiplier ** min(attempt - 1, 64), float(max_ms))
    share = zlib.crc32(f"{seed}:{attempt}".encode()) / 0xFFFFFFFF
    return max(1, int(grown * (1.0 - jitter * share)))
