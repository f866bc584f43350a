"""Every machine behind one function: which one folds an input. Pure."""

from saga_processors.machine import Decision, UnparkRequested, Verdict
from saga_processors.saga import Effect as SagaEffect
from saga_processors.saga import Input as SagaInput
from saga_processors.saga import Saga, SagaStarted
from saga_processors.saga_machine import advance as advance_saga
from saga_processors.transaction import Effect as TransactionEffect
from saga_processors.transaction import Input as TransactionInput
from saga_processors.transaction import Transaction, TransactionStarted
from saga_processors.transaction import advance as advance_transaction

Machine = Saga | Transaction
Input = SagaInput | TransactionInput | UnparkRequested
Effect = SagaEffect | TransactionEffect


def advance(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """Fold one input into a transaction, whatever its kind; see ``saga_machine.advance`` and ``transaction.advance``.

    An input of the other kind is REJECTED: an id that two clients gave to two things, or a forged answer.
    """
    match machine:
        case None:
            if isinstance(event, SagaStarted):
                return advance_saga(None, event, at)
            if isinstance(event, TransactionStarted):
                return advance_transaction(None, event, at)
            return Decision(None, (), Verdict.REJECTED, "no such transaction")
        case _ if isinstance(event, UnparkRequested):
            return Decision(machine, (), Verdict.APPLIED)
        case Saga():
            if isinstance(event, SagaInput):
                return advance_saga(machine, event, at)
            reason = f"this is a saga; {type(event).__name__} is no input of it"
        case Transaction():
            if isinstance(event, TransactionInput):
                return advance_transaction(machine, event, at)
            reason = f"this is a two-phase commit; {type(event).__name__} is no input of it"
    return Decision(machine, (), Verdict.REJECTED, reason)
