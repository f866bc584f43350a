"""What a service installs to take part in Fluxora's transactions.

::

    from participant import Command, Refused, Service, outbox

    billing = Service("billing")

    @billing.action("bill")
    def bill(connection, command): ...

    @billing.compensation("bill")
    def unbill(connection, command): ...

    billing.run()

For events there are ``outbox.publish``, ``event_type`` and ``Consumer`` (docs/events.md).
For two-phase commits there are ``ResourceManager``, ``PreparedTransactionManager`` and ``add_transaction_endpoints``
(docs/two-phase-commit.md).

A handler's rows, the proof that its command was handled, and the reply commit together or not at all
(``participant.batch`` says what a crash does on every line).
"""

from participant import outbox
from participant.changes import CannotApply, Change, ChangeKind
from participant.command import Command, Operation, Outcome, Refused
from participant.consumer import Consumer, Unknown
from participant.endpoints import add_transaction_endpoints
from participant.events import EventType, event_type
from participant.outbox_client import OutboxClient
from participant.prepared import PreparedTransactionManager
from participant.resources import ResourceManager
from participant.saga_client import SagaClient
from participant.service import InvalidService, Service
from participant.settings import Settings
from participant.subscriptions import Event
from participant.two_phase import (
    InvalidChange,
    StillBusy,
    TransactionEnded,
    TwoPhaseError,
    UnknownTransaction,
    Vote,
)

__all__ = [
    "CannotApply",
    "Change",
    "ChangeKind",
    "Command",
    "Consumer",
    "Event",
    "EventType",
    "InvalidChange",
    "InvalidService",
    "Operation",
    "OutboxClient",
    "Outcome",
    "PreparedTransactionManager",
    "Refused",
    "ResourceManager",
    "SagaClient",
    "Service",
    "Settings",
    "StillBusy",
    "TransactionEnded",
    "TwoPhaseError",
    "Unknown",
    "UnknownTransaction",
    "Vote",
    "add_transaction_endpoints",
    "event_type",
    "outbox",
]
