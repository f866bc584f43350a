"""Lengths of time in queries."""

import re

from web.problems import Malformed

#: For the OpenAPI document.
PATTERN = "^[0-9]{1,9}([.][0-9]{1,9})?(ms|s|m|h|d)?$"
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(field: str, text: str) -> float:
    """A length of time such as ``30s``, ``30``, ``500ms``, ``5m``, ``2h`` or ``7d``; raises Malformed."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise Malformed([(field, "is a time such as 30s, 30, 500ms, 1m, 2h or 7d")])
    return float(found[1]) * _UNIT_SECONDS[found[2]]


def wait_seconds(text: str | None, limit: float) -> float:
    """The length of ``?wait=``, cut to ``limit``; raises Malformed."""
    return 0.0 if text is None else min(seconds("wait", text), limit)
