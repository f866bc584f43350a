"""Whether an operation of a step may run here: the rules, without a database.

A step's action and its compensation may each arrive late, twice, or in the wrong order (DTM calls the hard cases
null compensation and hanging). One row for each operation of a step decides them all; the primary key of the
barrier table makes two workers agree.

==================  ==============  =================  ==========================================
what arrives        action's row    compensation's     what is done
==================  ==============  =================  ==========================================
action              none            none               RUN the handler
action              DONE, REFUSED   none               REPLAY: the stored answer, again
action              CANCELLED       (any)              TOO_LATE: refused, nothing runs
action              DONE, REFUSED   there              TOO_LATE: what it did is undone by now
compensation        DONE            none               RUN the handler
compensation        none            none               CANCEL: nothing to undo; the action may not run any more
compensation        REFUSED         none               NOTHING: nothing to undo
compensation        CANCELLED       none               NOTHING (is not written, but would be right)
compensation        (any)           there              UNDONE: it is undone already
==================  ==============  =================  ==========================================

A refusal is remembered so that every attempt of a step gets the same answer: a pivot that was refused once must not
run in a later attempt. Only that of a step that must succeed (retriable) is not, because it is asked again until it
says yes.
"""

from dataclasses import dataclass
from enum import StrEnum

from participant.command import Json, Operation, Outcome


class Decision(StrEnum):
    #: call the handler, then write the operation's row
    RUN = "RUN"
    #: answer what the action's row says
    REPLAY = "REPLAY"
    #: refuse: the compensation was here first
    TOO_LATE = "TOO_LATE"
    #: write the action's row as CANCELLED and the compensation's row; answer DONE
    CANCEL = "CANCEL"
    #: write the compensation's row; answer DONE
    NOTHING = "NOTHING"
    #: write nothing; answer DONE
    UNDONE = "UNDONE"


@dataclass(frozen=True, slots=True)
class Step:
    """What the barrier holds for one step of one transaction."""

    action: Outcome | None = None
    result: Json | None = None
    reason: str | None = None
    compensated: bool = False


#: A step of which nothing has been seen.
UNSEEN = Step()


def decide(step: Step, operation: Operation) -> Decision:
    """Return what an operation that arrives now leads to. Total: every pair has an answer."""
    if operation is Operation.ACTION:
        if step.compensated or step.action is Outcome.CANCELLED:
            return Decision.TOO_LATE
        return Decision.RUN if step.action is None else Decision.REPLAY
    if step.compensated:
        return Decision.UNDONE
    if step.action is None:
        return Decision.CANCEL
    return Decision.RUN if step.action is Outcome.DONE else Decision.NOTHING
