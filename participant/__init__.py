"""What a service installs to take part in Fluxora's transactions.

::

    from participant import Command, Refused, Service, outbox

    billing = Service("billing")

    @billing.action("bill")
    def bill(connection, command): ...

    @billing.compensation("bill")
    def unbill(connection, command): ...

    billing.run()

A handler's rows, the proof that its command was handled, and the reply commit together or not at all
(``participant.batch`` says what a crash does on every line).
"""

from participant import outbox
from participant.command import Command, Operation, Outcome, Refused
from participant.saga_client import SagaClient
from participant.service import InvalidService, Service
from participant.settings import Settings

__all__ = [
    "Command",
    "InvalidService",
    "Operation",
    "Outcome",
    "Refused",
    "SagaClient",
    "Service",
    "Settings",
    "outbox",
]
