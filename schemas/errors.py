"""The error tree of the platform.

::

    FluxoraError
    ├── WrongShape           the caller's record does not fit its schema
    ├── InvalidSchema        a type of the user's is no Avro record, or its name is taken
    ├── IncompatibleSchema   a schema would break its readers
    ├── UndecodableRecord    bytes from a topic are not what they should be
    ├── RegistryUnavailable  the schema registry does not answer; nothing was written
    ├── CallFailed           a call of our REST APIs did not do what was asked (participant.rest has its kinds)
    ├── NotJson              a value of the caller's cannot be written as JSON (participant.json_text)
    ├── InvalidService       the handlers of a service do not fit together (participant.handlers)
    └── TwoPhaseError        a call of a two-phase commit cannot be done here (participant.two_phase)
        ├── InvalidChange        the caller's fault: it breaks a rule, which is named with its field
        ├── UnknownTransaction   commit of what was never prepared here: in doubt, never guessed
        ├── TransactionEnded     it ended the other way: commit after abort, abort after commit
        └── StillBusy            another call of the same transaction is in progress; call again

The pure modules import nothing, so theirs stand alone: ``InvalidDefinition`` (a ValueError: the caller's saga breaks a
rule) and ``Halted`` (going on would break a guarantee; the process must end). Errors of a single package that never
leave it (connectors, coordinator, fluxora) are defined where they are raised.

A business refusal is a reply, never an exception.
"""


class FluxoraError(Exception):
    """Root of every error this platform raises on purpose."""


class WrongShape(FluxoraError):
    """A record does not fit its Avro schema. The message names the field. Nothing was written."""


class InvalidSchema(FluxoraError):
    """A type of the user's cannot be an Avro record, or its name is taken. The message names the field."""


class IncompatibleSchema(FluxoraError):
    """A schema was refused because readers of the registered versions would break."""


class UndecodableRecord(FluxoraError):
    """The bytes are not a record in the Confluent wire format of a schema that the registry knows."""


class RegistryUnavailable(FluxoraError):
    """The schema registry could not be asked for something that is not yet cached here."""
