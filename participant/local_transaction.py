"""What a batch needs of its local transaction, whether it handles commands or events."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

_T = TypeVar("_T")

#: SQLSTATE classes that say nothing about what was handled: connection, rollback (serialization, deadlock), resources
#: (disk full, too many connections), operator intervention (shutdown, failover), system error.
_INFRASTRUCTURE_CLASSES = ("08", "40", "53", "58")
_INFRASTRUCTURE_STATES = (
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "25006",
)  # 25006: a standby that was the primary


class Retry(Exception):
    """The batch met something that is no fault of what is in it. It was rolled back and is to be tried again."""


class Culprit(Exception):
    """The batch was rolled back because of these items, or of one among them."""

    def __init__(self, items: Sequence[Any], cause: BaseException) -> None:
        super().__init__(str(cause))
        self.items = items
        self.cause = cause


def cut(items: Sequence[_T], culprits: Sequence[_T]) -> list[list[_T]]:
    """Cut a failed batch, in its order: around the culprit if it is one, else in halves."""
    if len(culprits) == 1:
        at = next(i for i, item in enumerate(items) if item is culprits[0])
        parts = [list(items[:at]), [items[at]], list(items[at + 1 :])]
    else:
        middle = len(items) // 2
        parts = [list(items[:middle]), list(items[middle:])]
    return [part for part in parts if part]


def limit_idle_transactions(engine: Engine, limit_s: float) -> None:
    """Have PostgreSQL end a transaction of ``engine`` that is silent for so long.

    A worker that is frozen inside a batch (SIGSTOP, a suspended virtual machine, a cut network) holds the locks of
    its inbox rows, and its successor waits for them on line 2; without a limit it would wait for ever.
    """

    @event.listens_for(engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        connection.execute(f"SET idle_in_transaction_session_timeout = {int(limit_s * 1000)}")
        connection.commit()


def is_infrastructure(error: BaseException) -> bool:
    """Tell whether the database, not what was handled, is the cause: trying again later may well succeed."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, (OperationalError, InterfaceError))
    return state.startswith(_INFRASTRUCTURE_CLASSES) or state in _INFRASTRUCTURE_STATES


def first_line(error: BaseException) -> str:
    """Return what a log line or a health report needs of an error."""
    return (str(error).splitlines() or [repr(error)])[0]


class Guard:
    """Sees what a handler does to the batch's connection: whether it writes, and that it does not end the
    transaction."""

    def __init__(self, engine: Engine) -> None:
        self._connection: Connection | None = None
        self._wrote = False
        event.listen(engine, "before_cursor_execute", self._note)
        event.listen(engine, "commit", self._refuse)
        event.listen(engine, "rollback", self._refuse)

    def call(self, connection: Connection, handler: Callable[[], _T]) -> tuple[_T, bool]:
        """Return what ``handler`` returns, and whether it ran anything but SELECTs.

        Statements that bypass SQLAlchemy, and functions that write when selected from, are not seen.
        """
        self._connection, self._wrote = connection, False
        try:
            return handler(), self._wrote
        finally:
            self._connection = None

    def _note(self, connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if connection is self._connection and statement.lstrip()[:6].upper() != "SELECT":
            self._wrote = True

    def _refuse(self, connection: Connection) -> None:
        if connection is self._connection:
            # SQLAlchemy takes its transaction for ended now, and would give a connection with an open one back to
            # the pool: the next batch would then commit what this one did. So the connection goes.
            self._connection = None
            connection.invalidate()
            raise RuntimeError(
                "a handler must not commit or roll back: its rows belong to the transaction of the whole batch"
            )
