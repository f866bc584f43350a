"""Points in time as people give them on a command line."""

import re
from datetime import datetime

from schemas import FluxoraError

_AGO = re.compile(r"(\d{1,9})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class NoTime(FluxoraError):
    """A text that is no point in time."""


def point_in_time(text: str, now: float) -> float:
    """RFC 3339 with a zone, or so long before ``now``; seconds since the epoch. Raises NoTime."""
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _SECONDS[match[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise NoTime(f"a time is RFC 3339 with a zone, as 2026-11-23T10:00:00Z, or 15m, 2h, 1d ago; got {text!r}")
    return at.timestamp()
