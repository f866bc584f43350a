"""HTTP: the relay, and services without a worker of ours.

The relay's window, its verdicts and its commands are the product's (``outbox_relay``); its consumer, its calls and the
takeover are modelled as ``outbox_relay.intake`` and ``relay`` describe them: one attempt for a command, over before the
command expires; an answer is in the log before its offset is committed; who takes over passes over what the log says
is answered, and takes what may have been called before for in doubt.
"""

import json
from typing import TYPE_CHECKING, Any

from outbox_relay.command import HttpCommand
from outbox_relay.outcome import Answer, Called, Lost, NotSent, Operation, judge
from outbox_relay.window import Window
from participant.two_phase import TransactionEnded, UnknownTransaction
from tests.simulation.kafka import PARTITIONS, Consumer, Encoded, Group
from tests.simulation.schedule import ASLEEP, Life, Process
from tests.simulation.services import LocalDatabase, resources_of

if TYPE_CHECKING:
    from tests.simulation.world import World


class Relay:
    def __init__(self, world: "World", commands: str) -> None:
        self._world = world
        self._schedule = world.schedule
        topic = world.topic(commands)
        self.group = Group(topic)
        #: Calls under way; a death cuts them off.
        self._calls: set[int] = set()
        self._windows: dict[int, Window] = {}
        self.process = Process(world.schedule, "relay", self._live, died=self._calls.clear)
        topic.subscribe(lambda partition: self.process.wake())

    def _live(self) -> Life:
        consumer = Consumer(self.group)
        answered = self._answered_before()
        ends = [len(records) for records in self.group.topic.partitions]
        windows = {p: Window(10_000, start, 0.0, ends[p]) for p, start in enumerate(self.group.committed)}
        self._windows = windows
        yield "has taken over"
        while True:
            for record in consumer.poll(8):
                window = windows[record.partition]
                window.taken(record.offset)
                asked = HttpCommand.from_record(record.value.record)
                if not window.begins(asked.command_id):
                    window.done(record.offset)
                elif asked.command_id in answered:
                    window.done(record.offset, asked.command_id)
                else:
                    again = record.offset < window.taken_over_to
                    self._begin(asked, window, record.offset, again=again)
            self._commit()
            yield "before it polls again"
            if all(consumer.positions[p] >= len(self.group.topic.partitions[p]) for p in range(PARTITIONS)):
                yield ASLEEP

    def _answered_before(self) -> set[str]:
        """``outbox_relay.predecessors``: the log says it."""
        records = (record.value for partition in self._world.log.partitions for record in partition)
        return {value.record["command_id"] for value in records if value and "command_id" in value.record}

    def _commit(self) -> None:
        for partition, window in self._windows.items():
            if (offset := window.to_commit()) is not None:
                self.group.committed[partition] = offset

    # One call

    def _begin(self, asked: HttpCommand, window: Window, offset: int, *, again: bool) -> None:
        world, number = self._world, self._world.number()
        self._calls.add(number)
        left = round(asked.expires_at * 1000) - self._schedule.now
        place = f"relay: {asked.command_id}"
        if left <= 1 or world.chance.fault("not reached", place, 0.1):
            called: Called = NotSent("expired, or not reached")
            self._schedule.later(1, lambda: self._end(number, asked, called, window, offset, again=again))
            return
        slow = world.chance.fault("slow call", place, 0.15)
        takes = 1 + world.chance.amount("slow call", place, left - 1) if slow else 1
        self._schedule.later(takes, lambda: self._arrive(number, asked, window, offset, again=again))

    def _arrive(self, number: int, asked: HttpCommand, window: Window, offset: int, *, again: bool) -> None:
        if number not in self._calls:
            return
        called: Called = self._world.http_service(asked.service_name).call(asked)
        place = f"relay: {asked.command_id}"
        if self._world.chance.fault("answer lost", place, 0.15):
            called = Lost("the connection broke")
        if self._dies("called", place):
            return
        self._schedule.later(1, lambda: self._end(number, asked, called, window, offset, again=again))

    def _end(
        self, number: int, asked: HttpCommand, called: Called, window: Window, offset: int, *, again: bool
    ) -> None:
        if number not in self._calls:
            return
        self._calls.discard(number)
        schema, record = asked.reply(judge(asked.operation, called, again=again))
        self._world.send("log", asked.transaction_id.encode(), Encoded(schema, record))
        if self._dies("answered", f"relay: {asked.command_id}"):
            return
        window.done(offset, asked.command_id)
        self.process.wake()

    def _dies(self, line: str, place: str) -> bool:
        if self._world.chance.fault(f"killed after it {line}", place, 0.02):
            self.process.kill()
            return True
        return False


class HttpService:
    """Steps without a barrier: it knows its Idempotency-Key, and undoes what it has done when it is told to.

    As a participant of two-phase commits it answers as ``participant.endpoints`` do.
    """

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self.name = name
        self.database = LocalDatabase()
        self.resources = resources_of(world, name, self.database)

    def call(self, asked: HttpCommand) -> Answer:
        """One POST."""
        place = f"{self.name}: {asked.command_id}"
        if self._world.chance.fault("answers 503", place, 0.08):
            return Answer(503)
        body = json.loads(asked.body)
        match asked.operation:
            case Operation.ACTION:
                return self._act(asked.transaction_id, asked.subject, body, place)
            case Operation.COMPENSATION:
                return self._undo(asked.transaction_id, asked.subject, body)
        return self._two_phase(asked, body)

    def _act(self, id: str, step: str, body: Any, place: str) -> Answer:
        effect = self._world.history.effects[id, step]
        self._world.check_payload(id, step, body)
        if not effect.ran_at:
            if self._world.chance.fault("refuses", place, 0.2):
                return Answer(409, b'{"detail": "the business says no"}')
            self._world.history.ran(id, step, {"n": self._world.number(), "of": step})
        return Answer(200, json.dumps(effect.result).encode())

    def _undo(self, id: str, step: str, body: Any) -> Answer:
        self._world.check_payload(id, step, body["original_payload"])
        effect = self._world.history.effects[id, step]
        if effect.ran_at and not effect.undone_at:
            self._world.history.undone(id, step)
        return Answer(200, b"{}")

    def _two_phase(self, asked: HttpCommand, body: Any) -> Answer:
        try:
            match asked.operation:
                case Operation.PREPARE:
                    return Answer(200 if self.resources.prepare_payload(asked.transaction_id, body) else 409)
                case Operation.COMMIT:
                    if self._world.chance.fault("promise lost", f"{self.name}: {asked.transaction_id}", 0.04):
                        self.resources.lose(asked.transaction_id)
                    self.resources.commit(asked.transaction_id)
                case _:
                    self.resources.abort(asked.transaction_id)
        except UnknownTransaction:
            return Answer(404)
        except TransactionEnded:
            return Answer(409)
        return Answer(200, b"{}")
