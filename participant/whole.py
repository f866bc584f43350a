"""A participant that is three functions of the service: prepare, commit, abort, for a transaction as a whole."""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine

from participant.changes import ChangeKind
from participant.command import Refused
from participant.resources import ResourceManager
from participant.two_phase import InvalidChange, Vote, checked_id

#: Gets the connection, the transaction's id and the payload of the prepare.
PrepareHandler = Callable[[Connection, str, Mapping[str, Any]], Refused | None]
EndHandler = Callable[[Connection, str, Mapping[str, Any]], object]

#: The one kind of resource; the transaction's id is the resource's, so no transaction is in another's way.
_WORK = "work"


class WholeTransaction(ResourceManager):
    """Keeps the rules of ``participant.two_phase`` around three functions; each takes effect at most once.

    They run in the order prepare, then commit or abort, and these only after a prepare that said yes. A second copy
    of a prepare gets the first one's answer, one that comes after the abort is refused, and neither is called.
    """

    def __init__(
        self, engine: Engine | None, *, service: str, prepare: PrepareHandler, commit: EndHandler, abort: EndHandler
    ) -> None:
        super().__init__(engine, service=service)
        self.resource(
            _WORK,
            reserve=lambda connection, change: prepare(connection, change.transaction_id, change.data),
            apply=lambda connection, change: commit(connection, change.transaction_id, change.data),
            release=lambda connection, change: abort(connection, change.transaction_id, change.data),
            rehearse=False,
        )

    def prepare_payload(
        self, transaction_id: str, payload: Mapping[str, Any], *, connection: Connection | None = None
    ) -> Vote:
        """Have the service's function prepare the payload."""
        if not isinstance(payload, Mapping):
            raise InvalidChange("payload", "must be a JSON object")
        id = checked_id(transaction_id)
        return self.prepare(id, id, ChangeKind.CREATE, payload, connection=connection)
