"""Every machine behind one function: which one folds an input. Pure."""

from saga_processors.machine import Decision
from saga_processors.saga import Effect as SagaEffect
from saga_processors.saga import Input as SagaInput
from saga_processors.saga import Saga
from saga_processors.saga_machine import advance as advance_saga

Machine = Saga
Input = SagaInput
Effect = SagaEffect


def advance(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """Fold one input into a transaction, whatever its kind; see ``saga_machine.advance``."""
    return advance_saga(machine, event, at)
