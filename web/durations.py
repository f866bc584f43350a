"""Lengths of time in queries."""

import re

from web.problems import Malformed

#: For the OpenAPI document.
PATTERN = "^[0-9]{1,9}([.][0-9]{1,9})?(ms|s|m|h|d)?$"
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", re.ASCII)
#: More than the age of anything here, and less than PostgreSQL can count.
_OLDEST_SECONDS = 100 * 365 * 86400.0
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(field: str, text: str) -> float:
    """A length of time such as ``30s``, ``30``, ``500ms``, ``5m``, ``2h`` or ``7d``; raises Malformed."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise Malformed([(field, "is a time such as 30s, 30, 500ms, 1m, 2h or 7d")])
    return float(found[1]) * _UNIT_SECONDS[found[2]]


def age_seconds(field: str, text: str | None) -> float | None:
    """The length of ``?older_than=`` and the like, if it is given; raises Malformed."""
    return None if text is None else min(seconds(field, text), _OLDEST_SECONDS)


def wait_seconds(text: str | None, limit: float) -> float:
    """The length of ``?wait=``, cut to ``limit``; raises Malformed."""
    return 0.0 if text is None else min(seconds("wait", text), limit)
