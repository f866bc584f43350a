"""The opaque mark of a place in a list, newest first: a creation time and an id."""

import base64
import binascii
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

from web.problems import Malformed

_PLACE = struct.Struct(">Bq16s")
_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def encode(created_at: datetime, id: UUID) -> str:
    micros = (created_at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_PLACE.pack(_VERSION, micros, id.bytes)).decode().rstrip("=")


def decode(cursor: str) -> tuple[datetime, UUID]:
    """The inverse of :func:`encode`; raises Malformed for what it did not make."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, micros, id = _PLACE.unpack(raw)
        if version != _VERSION:
            raise ValueError(version)
        return _EPOCH + timedelta(microseconds=micros), UUID(bytes=id)
    except (ValueError, OverflowError, struct.error, binascii.Error) as error:
        raise Malformed([("cursor", "is the next_cursor of a page, unchanged")]) from error
