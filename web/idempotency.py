"""``Idempotency-Key``: the header's form, and what two requests with one key must share."""

import hashlib
import re
from typing import Any

import orjson

from web.problems import Malformed

KEY_LIMIT = 255
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def idempotency_key(values: list[str]) -> str | None:
    """Check the header's values; raises Malformed."""
    if not values:
        return None
    if len(values) > 1:
        raise Malformed([("Idempotency-Key", "is given once")])
    if len(values[0]) > KEY_LIMIT or not _KEY.fullmatch(values[0]):
        raise Malformed([("Idempotency-Key", f"is 1 to {KEY_LIMIT} printable ASCII characters")])
    return values[0]


def digest(request_line: str, plain: Any) -> bytes:
    """What two requests with one Idempotency-Key must share: method and path (``request_line``), and body.

    Spacing and the order of names in the body do not matter: a client that builds it anew means the same.
    """
    return hashlib.sha256(f"{request_line}\n".encode() + orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).digest()


def reused(what: str) -> Malformed:
    """The answer to a key that came before with another body; ``what`` is what the call creates."""
    return Malformed(
        [("Idempotency-Key", f"is new for each {what}; this one was sent with another body")],
        slug="idempotency-key-reused",
    )
