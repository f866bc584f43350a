"""What was handled before: the table ``fluxora.inbox``."""

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import Connection

from participant.arrays import text_array
from participant.statements import Statement

_T = TypeVar("_T")

# Sorted, so that two workers with the same keys take the rows in the same order and cannot deadlock on them.
_CLAIM = Statement("""
    INSERT INTO fluxora.inbox (command_id)
    SELECT id FROM unnest(CAST(%(ids)s AS text[])) AS id ORDER BY id COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING command_id
""")


def claim(connection: Connection, items: Sequence[_T], keys: Sequence[str]) -> list[_T]:
    """Write the inbox rows of ``items`` and return those that had none: of two copies among them the first.

    Waits for whoever is writing one of the rows now. ``keys`` are the items', in the same order.
    """
    new = {key for (key,) in _CLAIM(connection, ids=text_array(keys))}
    claimed = []
    for item, key in zip(items, keys, strict=True):
        if key in new:
            new.remove(key)
            claimed.append(item)
    return claimed
