"""What an HTTP answer means to the machine: pure, one table for each kind of operation.

The question behind each line is what may have happened at the service. FAILED and REFUSED say that nothing was done;
where that is not certain the outcome is UNKNOWN, and the machine deals with an action that may have run.
"""

from dataclasses import dataclass
from enum import StrEnum

import orjson

from participant.command import RESULT_LIMIT, Json

#: Characters of a reason that are kept.
REASON_LIMIT = 1_000
#: Levels of a result: what encoders take (orjson ends at 254), and room for the commands that a result travels in.
_DEPTH_MARGIN = 54


class Operation(StrEnum):
    #: do a saga's step
    ACTION = "ACTION"
    #: undo it
    COMPENSATION = "COMPENSATION"
    #: vote
    PREPARE = "PREPARE"
    #: do what was promised
    COMMIT = "COMMIT"
    #: give up what was promised
    ABORT = "ABORT"


#: Operations of sagas; the others are those of two-phase commit.
SAGA = (Operation.ACTION, Operation.COMPENSATION)
#: Operations that have something to be undone; the others are decided, and repeated until they are done.
ASKS = (Operation.ACTION, Operation.PREPARE)
#: What the others also take for done: nobody reads an answer's body here. 202 says that it is not done yet.
_SUCCESS = (201, 204)


class Outcome(StrEnum):
    """As in the schemas ``StepReplied`` and ``ParticipantReplied``."""

    DONE = "DONE"
    #: the business says no; nothing was done, nothing is held
    REFUSED = "REFUSED"
    #: an error; nothing was done
    FAILED = "FAILED"
    #: it may have been done
    UNKNOWN = "UNKNOWN"
    #: commit or abort: the participant does not know the transaction
    NO_SUCH_TRANSACTION = "NO_SUCH_TRANSACTION"


@dataclass(frozen=True, slots=True)
class NotSent:
    """The call was not made: nothing has reached the service."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The service was reached, and no whole answer came: what it did is not known."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, but for a body that could not be taken."""

    status: int
    body: bytes = b""
    #: Why the body could not be taken; it is empty then.
    problem: str | None = None


Called = NotSent | Lost | Answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is reported: ``result`` with an action that is DONE, ``reason`` with whatever is not DONE."""

    outcome: Outcome
    reason: str | None = None
    result: Json | None = None


def judge(operation: Operation, called: Called, *, again: bool = False) -> Verdict:
    """Return what one attempt came to.

    Args:
        again: another relay may have called already, and its answer is lost. Then nobody can say that nothing was
            done: a service that answered 200 to the first call may refuse, or not be reached by, the second.
    """
    verdict = _judge(operation, called)
    if again and verdict.outcome in (Outcome.REFUSED, Outcome.FAILED) and operation in ASKS:
        return Verdict(Outcome.UNKNOWN, f"{verdict.reason} (a relay before this one may have called)")
    return verdict


def _judge(operation: Operation, called: Called) -> Verdict:
    if isinstance(called, NotSent):
        # Without its question a participant has promised nothing: that is a no.
        outcome = Outcome.REFUSED if operation is Operation.PREPARE else Outcome.FAILED
        return Verdict(outcome, printable(f"not called: {called.reason}"))
    if isinstance(called, Lost):
        return Verdict(Outcome.UNKNOWN, printable(called.reason))
    if called.status == 200:
        return _result(called) if operation is Operation.ACTION else Verdict(Outcome.DONE)
    if called.status in _SUCCESS and operation not in ASKS:
        return Verdict(Outcome.DONE)
    return Verdict(_outcome(operation, called.status), _reason(called))


def _outcome(operation: Operation, status: int) -> Outcome:
    """Of a status other than 200."""
    # 408: the service, or a proxy before it, gave up in the middle.
    refused_whole = 400 <= status < 500 and status != 408
    if operation is Operation.ACTION and status in (409, 422):
        return Outcome.REFUSED
    if operation is Operation.PREPARE and refused_whole:
        return Outcome.REFUSED
    if operation in (Operation.COMMIT, Operation.ABORT) and status == 404:
        return Outcome.NO_SUCH_TRANSACTION
    return Outcome.FAILED if refused_whole else Outcome.UNKNOWN


def _result(answer: Answer) -> Verdict:
    """Of an action's 200. One whose result cannot be kept has run, all the same."""
    if answer.problem is not None:
        return Verdict(Outcome.UNKNOWN, printable(f"HTTP 200, but {answer.problem}"))
    if len(answer.body) > RESULT_LIMIT:
        return Verdict(Outcome.UNKNOWN, f"HTTP 200, but its body has {len(answer.body)} bytes; {RESULT_LIMIT} may be")
    if not answer.body.strip():
        return Verdict(Outcome.DONE, result=Json("null"))
    try:
        # As it was written: a reader with large numbers gets them whole. What we could not write again is refused
        # here and not by whoever has to pass it on.
        nested = orjson.loads(answer.body)
        for _ in range(_DEPTH_MARGIN):
            nested = [nested]
        orjson.dumps(nested)
    except orjson.JSONDecodeError as error:
        return Verdict(Outcome.UNKNOWN, printable(f"HTTP 200, but its body is not JSON: {error}"))
    except orjson.JSONEncodeError:
        return Verdict(Outcome.UNKNOWN, "HTTP 200, but its JSON is nested deeper than 200 levels")
    return Verdict(Outcome.DONE, result=Json(answer.body.decode()))


def _reason(answer: Answer) -> str:
    """The detail of problem+json (RFC 9457) or of what resembles it, else the body, after the status."""
    said = answer.body.decode("utf-8", "replace")
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        said = next((body[key] for key in ("detail", "title") if isinstance(body.get(key), str) and body[key]), said)
    if answer.problem is not None:
        said = f"({answer.problem})"
    return printable(f"HTTP {answer.status}: {said}" if said.strip() else f"HTTP {answer.status}")


def printable(text: str) -> str:
    """Return ``text`` fit for a log, a terminal and PostgreSQL: no control characters, one line, not endless."""
    cut = text[:REASON_LIMIT]
    clean = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    return " ".join(clean.split()) + ("…" if len(text) > REASON_LIMIT else "")
