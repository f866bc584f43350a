"""One batch of commands, handled in one PostgreSQL transaction.

What happens, and what a crash of the process leaves on each line::

    1  begin                      nothing
    2  inbox rows of the batch    nothing: the transaction is rolled back by the server, the commands come again
    3  barrier rows are read      the same
    4  the handlers run           the same; what a handler did outside this database is the handler's business
    5  barrier rows, replies      the same
    6  commit                     in doubt for us, not for the database: either all of 2 to 5 is there, and the
                                  commands that come again find their inbox rows and are skipped, or nothing is
    7  Kafka offsets are          the commands come again and are skipped
       committed (the caller)

A zombie, a second worker with the same commands, waits on line 2 for the rows of the first, and then skips them.
One that is frozen between 2 and 6 holds those rows until PostgreSQL ends its transaction
(``participant.local_transaction.limit_idle_transactions``).
Two attempts of one step in two workers meet on line 5 at the primary key of the barrier: the later one is rolled
back whole and tried again, and then reads on line 3 what the first one did.

The batch is tried as if nothing could fail, without savepoints: they halve the throughput (PROTOTYPE.md). When a
handler raises, or the commit does, everything is rolled back and the batch is cut: at the culprit where it is
known, else in halves, until the culprit stands alone. What fails alone is recorded as failed, and the saga machine
decides about further attempts.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import orjson
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from participant import barrier, inbox, outbox, two_phase
from participant.arrays import text_array, uuid_array
from participant.barrier import UNSEEN, Decision, Step
from participant.command import (
    REPLY,
    TRANSACTIONS_TOPIC,
    Command,
    InvalidResult,
    Operation,
    Outcome,
    Reply,
    reply_from,
    reply_record,
    storable,
)
from participant.crashpoint import crash_at
from participant.handlers import Handler, Handlers
from participant.handling import handling
from participant.incoming import AnyCommand
from participant.local_transaction import Culprit, Guard, Retry, cut, first_line, is_infrastructure
from participant.statements import Statement
from participant.two_phase import Answer, Participant, ParticipantCommand, TwoPhaseOutcome
from schemas import Codec, RegistryUnavailable

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
StepKey = tuple[uuid.UUID, str]
AnyReply = Reply | Answer

_READ_BARRIER = Statement(
    """
    SELECT b.transaction_id, b.step, b.operation, b.outcome, b.result, b.reason
    FROM unnest(CAST(%(transaction_ids)s AS uuid[]), CAST(%(steps)s AS text[])) AS k(transaction_id, step)
    JOIN fluxora.barrier b ON b.transaction_id = k.transaction_id AND b.step = k.step COLLATE "C"
    """,
    keep_plan=False,
)
_WRITE_BARRIER = Statement("""
    INSERT INTO fluxora.barrier (transaction_id, step, operation, outcome, result, reason)
    SELECT * FROM unnest(
        CAST(%(transaction_id)s AS uuid[]), CAST(%(step)s AS text[]), CAST(%(operation)s AS text[]),
        CAST(%(outcome)s AS text[]), CAST(%(result)s AS text[]), CAST(%(reason)s AS text[]))
""")


class _DirtyRefusal(Exception):
    """A handler refused after it had written: its rows must go, and with them the transaction."""

    def __init__(self, refused: dict[str, Reply]) -> None:
        super().__init__("refused after writing")
        self.refused = refused


class Batch:
    """Handles batches of one service. Not bound to a thread, but one batch at a time for one engine."""

    def __init__(
        self,
        engine: Engine,
        handlers: Handlers,
        codec: Codec,
        *,
        service: str,
        idle_limit_s: float = float("inf"),
        dead_letter: Callable[[AnyCommand, BaseException], None],
        observe: Callable[[AnyCommand, AnyReply], None] = lambda command, reply: None,
        participant: Participant,
    ) -> None:
        """``participant`` answers the commands of two-phase commits.

        ``dead_letter`` stores a command that failed for good; it returns when the letter is durable.

        ``idle_limit_s`` is what ``limit_idle_transactions`` was told: a handler that loses its connection after
        such a pause has failed; before it, the database has.
        """
        self._idle_limit_s = idle_limit_s
        self._engine = engine
        self._handlers = handlers
        self._codec = codec
        self._service = service
        self._dead_letter = dead_letter
        self._observe = observe
        self._participant = participant
        self._guard = Guard(engine)

    def handle(self, commands: Sequence[AnyCommand]) -> None:
        """Handle ``commands``; when it returns, the reply of each is committed.

        The commands of one transaction are handled in the order given. Commands that are handled already are
        skipped: their replies are in the outbox.

        Raises:
            Retry: PostgreSQL or the registry is not there, or another worker was faster. Call again with the same
                commands; those that were committed before it are then skipped.
        """
        waiting = [list(commands)] if commands else []
        decided: dict[str, Reply] = {}
        while waiting:
            part = waiting.pop()
            try:
                self._attempt(part, decided)
            except _DirtyRefusal as refusal:
                decided.update(refusal.refused)
                waiting.extend(reversed(_before_and_from(part, refusal.refused)))
            except Culprit as culprit:
                if len(part) == 1:
                    self._record_failure(part[0], culprit.cause)
                else:
                    waiting.extend(reversed(cut(part, culprit.items)))

    def _attempt(self, commands: Sequence[AnyCommand], decided: dict[str, Reply]) -> None:
        try:
            with self._engine.begin() as connection:
                walk = self._within(connection, commands, decided)
                crash_at("participant.before_commit")
            crash_at("participant.after_commit")
        except (Culprit, _DirtyRefusal):
            raise
        except RegistryUnavailable as error:
            raise Retry(str(error)) from error
        except Exception as error:
            if is_infrastructure(error) or isinstance(error, _BarrierTaken):
                raise Retry(first_line(error)) from error
            # A deferred constraint at the commit, or a handler that swallowed its statement's error.
            raise Culprit(commands, error) from error
        for command, reply in walk.replies:
            self._observe(command, reply)

    def perform(self, connection: Connection, command: AnyCommand) -> AnyReply | None:
        """Handle one command within the transaction that is open on ``connection``; None if it was handled before.

        For tests of handlers: nothing is tried again, what the handler raises is raised, and then, as with a refusal,
        what it wrote is rolled back.
        """
        decided: dict[str, Reply] = {}
        while True:
            savepoint = connection.begin_nested()
            try:
                walk = self._within(connection, [command], decided)
            except _DirtyRefusal as refusal:
                savepoint.rollback()
                decided.update(refusal.refused)
            except BaseException as error:
                savepoint.rollback()
                if isinstance(error, Culprit):
                    raise error.cause from None
                raise
            else:
                savepoint.commit()
                return walk.replies[0][1] if walk.replies else None

    def _within(self, connection: Connection, commands: Sequence[AnyCommand], decided: dict[str, Reply]) -> "_Walk":
        """Lines 2 to 5."""
        walk = _Walk(
            connection,
            self._guard,
            self._handlers,
            self._participant,
            inbox.claim(connection, commands, [command.command_id for command in commands]),
            decided,
            self._idle_limit_s,
            partial(handling, self._service, self._codec),
        )
        walk.run()
        self._write(connection, walk)
        return walk

    def _write(self, connection: Connection, walk: "_Walk") -> None:
        if walk.rows:
            rows = sorted(walk.rows, key=itemgetter(0, 1, 2))  # one order for all workers, as with the inbox
            columns = ("transaction_id", "step", "operation", "outcome", "result", "reason")
            try:
                _WRITE_BARRIER(
                    connection,
                    **{name: text_array(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)},
                )
            except IntegrityError as error:
                raise _BarrierTaken("another worker handled a step of this batch at the same time") from error
        self._publish(connection, walk.replies)

    def _publish(self, connection: Connection, replies: Sequence[tuple[AnyCommand, AnyReply]]) -> None:
        messages = []
        for command, reply in replies:
            type, record = _record_of(command, reply)
            messages.append(
                outbox.Message(
                    topic=TRANSACTIONS_TOPIC,
                    key=str(command.transaction_id),
                    type=type,
                    payload=self._codec.encode(type, record),
                    source=self._service,
                    traceparent=command.traceparent,
                )
            )
        outbox.publish_many(connection, messages)

    def _record_failure(self, command: AnyCommand, error: BaseException) -> None:
        """Answer FAILED, after the dead letter if no attempt follows.

        A crash between the two leaves a dead letter of a command that comes again: it is tried once more, and may
        then leave a second letter. The other way round a failure could be without a letter.
        """
        log.warning(
            "command_failed",
            command_id=command.command_id,
            transaction_id=str(command.transaction_id),
            command=command.name,
            operation=command.operation.value,
            attempt=command.attempt,
            final=command.final,
            exc_info=error,
        )
        if command.final:
            self._dead_letter(command, error)
        reason = storable(f"{type(error).__name__}: {error}")
        reply: AnyReply
        if isinstance(command, Command):
            reply = Reply(Outcome.FAILED, reason=reason)
        else:
            reply = Answer(TwoPhaseOutcome.FAILED, reason)
        try:
            with self._engine.begin() as connection:
                # No barrier row: the machine's next attempt, with its own command id, may run.
                if not inbox.claim(connection, [command], [command.command_id]):
                    return
                self._publish(connection, [(command, reply)])
        except Exception as failed:
            if isinstance(failed, RegistryUnavailable) or is_infrastructure(failed):
                raise Retry(first_line(failed)) from failed
            raise
        self._observe(command, reply)


class _BarrierTaken(Exception):
    """The barrier row that this batch wants to write is there: another worker committed it since line 3."""


class _Walk:
    """The commands of one transaction, on their way through barrier and handlers."""

    def __init__(
        self,
        connection: Connection,
        guard: Guard,
        handlers: Handlers,
        participant: Participant,
        commands: list[AnyCommand],
        decided: dict[str, Reply],
        idle_limit_s: float,
        handling: Callable[[str | None], AbstractContextManager[None]],
    ) -> None:
        self._connection = connection
        self._idle_limit_s = idle_limit_s
        self._handling = handling
        self._guard = guard
        self._handlers = handlers
        self._participant = participant
        self._commands = commands
        self._decided = decided
        self._steps = self._read()
        #: Columns of the barrier; the first three are the primary key.
        self.rows: list[tuple[str | None, ...]] = []
        self.replies: list[tuple[AnyCommand, AnyReply]] = []

    def run(self) -> None:
        for wave in waves(self._commands):
            grouped: dict[Handler, list[Command]] = {}
            for command in wave:
                if isinstance(command, Command):
                    self._one(command, grouped)
                else:
                    self._two_phase(command)
            for handler, group in grouped.items():
                self._group(handler, group)

    def _read(self) -> dict[StepKey, Step]:
        keys = list({(one.transaction_id, one.step) for one in self._commands if isinstance(one, Command)})
        if not keys:
            return {}
        found = _READ_BARRIER(
            self._connection, transaction_ids=uuid_array(k[0] for k in keys), steps=text_array(k[1] for k in keys)
        )
        steps: dict[StepKey, Step] = {}
        for transaction_id, step, operation, outcome, result, reason in found:
            key = (transaction_id, step)
            seen = steps.get(key, UNSEEN)
            if operation == Operation.ACTION:
                steps[key] = Step(Outcome(outcome), result, reason, seen.compensated)
            else:
                steps[key] = Step(seen.action, seen.result, seen.reason, True)
        return steps

    def _one(self, command: Command, grouped: dict[Handler, list[Command]]) -> None:
        """Decide about ``command``; run its handler now, or leave it to its group."""
        step = self._steps.get((command.transaction_id, command.step), UNSEEN)
        match barrier.decide(step, command.operation):
            case Decision.RUN:
                if command.operation is Operation.COMPENSATION and step.result is not None:
                    # From the barrier: when the action's reply came too late for the machine, only we know it.
                    command = replace(command, result=orjson.loads(step.result))
                self._run(command, grouped)
            case Decision.REPLAY:
                assert step.action is not None
                self.replies.append((command, Reply(step.action, step.result, step.reason)))
            case Decision.TOO_LATE:
                self.replies.append((command, Reply(Outcome.REFUSED, reason="compensated before it arrived")))
            case Decision.CANCEL:
                # The action's row too, so that an action that runs in a zombie right now cannot commit.
                self._note(command, Operation.ACTION, Reply(Outcome.CANCELLED))
                self._note(command, Operation.COMPENSATION, Reply(Outcome.DONE))
                self.replies.append((command, Reply(Outcome.DONE)))
            case Decision.NOTHING:
                self._finish(command, Reply(Outcome.DONE))
            case Decision.UNDONE:
                self.replies.append((command, Reply(Outcome.DONE)))

    def _two_phase(self, command: ParticipantCommand) -> None:
        """The participant keeps its own table of what came before, and needs no barrier."""
        answer, _ = self._call([command], lambda: two_phase.perform(self._participant, self._connection, command))
        self.replies.append((command, answer))

    def _run(self, command: Command, grouped: dict[Handler, list[Command]]) -> None:
        if (known := self._decided.get(command.command_id)) is not None:
            self._finish(command, known)
            return
        if not self._handlers.undoes(command):
            self._finish(command, Reply(Outcome.DONE))
            return
        handler = self._handlers.find(command)
        if handler is None:
            unknown = self._handlers.unknown(command)
            if unknown.outcome is Outcome.REFUSED:
                # Remembered: in a rolling deployment another version may know the command, and must not run a
                # later attempt of what the machine takes for refused.
                self._finish(command, unknown)
            else:
                self.replies.append((command, unknown))
            return
        if handler.batch:
            grouped.setdefault(handler, []).append(command)
            return
        reply, wrote = self._call([command], lambda: reply_from(command, handler.call(self._connection, command)))
        if reply.outcome is Outcome.REFUSED and wrote:
            raise _DirtyRefusal({command.command_id: reply})
        self._finish(command, reply)

    def _group(self, handler: Handler, group: list[Command]) -> None:
        def call() -> list[Reply]:
            returned = handler.call(self._connection, group)
            if not isinstance(returned, Sequence) or len(returned) != len(group):
                raise InvalidResult(f"the batch handler of {handler.name!r} must return a list of {len(group)} answers")
            return [reply_from(command, answer) for command, answer in zip(group, returned, strict=True)]

        replies, wrote = self._call(group, call)
        refused = {c.command_id: r for c, r in zip(group, replies, strict=True) if r.outcome is Outcome.REFUSED}
        if refused and wrote:
            # Whose rows they are cannot be told: run it again with those that were not refused.
            raise _DirtyRefusal(refused)
        for command, reply in zip(group, replies, strict=True):
            self._finish(command, reply)

    def _call(self, commands: Sequence[AnyCommand], call: Callable[[], _T]) -> tuple[_T, bool]:
        started = time.monotonic()
        try:
            with self._handling(commands[0].traceparent if len(commands) == 1 else None):
                return self._guard.call(self._connection, call)
        except RegistryUnavailable:
            raise  # what the handler publishes cannot be encoded now: no command's fault
        except Exception as error:
            if is_infrastructure(error) and time.monotonic() - started < self._idle_limit_s:
                raise
            raise Culprit(commands, error) from error

    def _finish(self, command: Command, reply: Reply) -> None:
        if reply.outcome is not Outcome.REFUSED or not command.must_succeed:
            self._note(command, command.operation, reply)
        self.replies.append((command, reply))

    def _note(self, command: Command, operation: Operation, reply: Reply) -> None:
        key = (command.transaction_id, command.step)
        self.rows.append((str(key[0]), key[1], operation.value, reply.outcome.value, reply.result, reply.reason))
        seen = self._steps.get(key, UNSEEN)
        if operation is Operation.ACTION:
            self._steps[key] = Step(reply.outcome, reply.result, reply.reason, seen.compensated)
        else:
            self._steps[key] = Step(seen.action, seen.result, seen.reason, True)


def _record_of(command: AnyCommand, reply: AnyReply) -> tuple[str, dict[str, Any]]:
    """The schema and the Avro record of a reply."""
    if isinstance(command, Command):
        assert isinstance(reply, Reply)
        return REPLY, reply_record(command, reply)
    assert isinstance(reply, Answer)
    return two_phase.REPLY, two_phase.reply_record(command, reply)


def waves(commands: Sequence[AnyCommand]) -> list[list[AnyCommand]]:
    """Return the commands in rounds: the first of every transaction, then the second of every one, and so on.

    A round never holds two commands of one transaction, so its commands can be grouped by handler without
    reordering any transaction.
    """
    rounds: list[list[AnyCommand]] = []
    seen: dict[uuid.UUID, int] = {}
    for command in commands:
        number = seen.get(command.transaction_id, 0)
        seen[command.transaction_id] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(command)
    return rounds


def _before_and_from(commands: Sequence[AnyCommand], refused: dict[str, Reply]) -> list[list[AnyCommand]]:
    """Cut before the first refused command: what came before it is committed, the rest goes on.

    So no handler runs more than twice, however many refusals a batch has.
    """
    at = next(i for i, command in enumerate(commands) if command.command_id in refused)
    return [part for part in (list(commands[:at]), list(commands[at:])) if part]
