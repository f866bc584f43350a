"""How long to wait before trying again. Pure."""

import zlib


def wait_ms(attempt: int, seed: str, *, initial_ms: int, max_ms: int, multiplier: float, jitter: float) -> int:
    """Wait after ``attempt`` (from 1), ms: grows by ``multiplier`` up to ``max_ms``, less what ``jittered`` takes."""
    return jittered(min(initial_ms * multiplier ** min(attempt - 1, 64), float(max_ms)), attempt, seed, jitter)


def jittered(wait_ms: float, attempt: int, seed: str, jitter: float) -> int:
    """Take a share of up to ``jitter`` off a wait, so that those that failed together do not come back together.

    The share follows from ``seed`` and ``attempt``, so a replay waits exactly as long.
    """
    share = zlib.crc32(f"{seed}:{attempt}".encode()) / 0xFFFFFFFF
    return max(1, int(wait_ms * (1.0 - jitter * share)))
