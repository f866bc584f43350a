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

What is named here is imported when it is first used: the platform's own processes need a module or two of this package,
and each second of their start is a second of recovery.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "CannotApply": "participant.changes",
    "Change": "participant.changes",
    "ChangeKind": "participant.changes",
    "Command": "participant.command",
    "Consumer": "participant.consumer",
    "Event": "participant.subscriptions",
    "EventType": "participant.events",
    "InvalidChange": "participant.two_phase",
    "InvalidService": "participant.service",
    "Operation": "participant.command",
    "OutboxClient": "participant.outbox_client",
    "Outcome": "participant.command",
    "PreparedTransactionManager": "participant.prepared",
    "Refused": "participant.command",
    "ResourceManager": "participant.resources",
    "SagaClient": "participant.saga_client",
    "Service": "participant.service",
    "Settings": "participant.settings",
    "StillBusy": "participant.two_phase",
    "TransactionEnded": "participant.two_phase",
    "TwoPhaseError": "participant.two_phase",
    "Unknown": "participant.consumer",
    "UnknownTransaction": "participant.two_phase",
    "Vote": "participant.two_phase",
    "add_transaction_endpoints": "participant.endpoints",
    "event_type": "participant.events",
    "outbox": "participant.outbox",
}

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


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    loaded = import_module(module)
    return loaded if name == "outbox" else getattr(loaded, name)
