"""The judge of what was sent: outboxes against topics, messages, events, dead letters. Pure; a part of ``checker``."""

from collections import Counter, defaultdict
from itertools import pairwise

from tests.torture.history import History
from tests.torture.rules import Rule, Violation
from tests.torture.world import Consumed, World

#: One line of a finding names so many ids.
SHOWN = 5


def check(history: History, world: World) -> list[Violation]:
    return [*_outboxes(world), *_messages(history, world), *_events(history, world), *_poisons(world)]


def _outboxes(world: World) -> list[Violation]:
    found = []
    for row in world.rows:
        if row.id not in world.topics.get(row.topic, set()):
            told = f"{row.type} {row.id} of {row.database} is not in {row.topic}"
            found.append(Violation(Rule.ROW_LOST, row.key or row.id, told))
    written: dict[str, set[str]] = defaultdict(set)
    for row in world.rows:
        written[row.topic].add(row.id)
    for topic in sorted(world.outbox_only):
        strangers = sorted(world.topics.get(topic, set()) - written[topic])
        if strangers:
            told = f"{len(strangers)} ids are in no outbox: {', '.join(strangers[:SHOWN])}"
            found.append(Violation(Rule.PHANTOM, topic, told))
    return found


def _messages(history: History, world: World) -> list[Violation]:
    """Delivered at least once, and first receipts of a lane in the order of its numbers."""
    first: dict[str, int] = {}
    for receipt in sorted(world.receipts, key=lambda receipt: receipt.place):
        first.setdefault(f"{receipt.destination} {receipt.id}", receipt.place)
    kept = {one.label: one for one in world.messages}
    found = []
    for one in world.messages:
        arrived = f"{one.destination} {one.id}" in first
        if one.status != "DELIVERED":
            told = f"it is {one.status}, {'and has arrived' if arrived else 'and has not arrived'}: {one.error}"
            found.append(Violation(Rule.UNDELIVERED, one.id, told))
        elif not arrived:
            found.append(Violation(Rule.UNDELIVERED, one.id, f"it is DELIVERED, and {one.destination} has not got it"))
    lanes: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
    for message in history.messages:
        row = kept.get(message.label)
        place = None if row is None else first.get(f"{row.destination} {row.id}")
        if row is not None and place is not None:
            lanes[message.destination, message.lane].append((message.number, place, row.id))
    for (destination, lane), received in lanes.items():
        for (number, place, _), (next_number, next_place, id) in pairwise(sorted(received)):
            if next_place < place:
                told = f"number {next_number} of lane {lane} came to {destination} before number {number}"
                found.append(Violation(Rule.ORDER, id, told))
    return found


def _events(history: History, world: World) -> list[Violation]:
    """Each event that was committed has its effect at the consumer once, those of a stream in order."""
    found = []
    wanted = {event.label: event for event in history.events if event.label in world.published}
    answered = {one.label for one in history.answers if one.what == "create" and one.granted}
    for event in history.events:
        if event.label in answered and event.label not in world.published:
            found.append(Violation(Rule.LOST, event.label, "its transaction committed, and its row is not there"))
    effects = Counter(one.label for one in world.consumed)
    for label, event in wanted.items():
        if not effects[label]:
            told = f"number {event.number} of stream {event.stream} had no effect at its consumer"
            found.append(Violation(Rule.EVENT_LOST, label, told, label))
    for label, count in effects.items():
        if count > 1:
            found.append(Violation(Rule.DOUBLED, label, f"the event took effect {count} times", label))
        if label not in wanted:
            found.append(Violation(Rule.PHANTOM, label, "an event was consumed that no transaction committed", label))
    streams: dict[str, list[Consumed]] = defaultdict(list)
    for one in world.consumed:
        streams[one.stream].append(one)
    for stream, consumed in streams.items():
        in_order = sorted(consumed, key=lambda one: (one.number, one.place))
        for before, after in pairwise(in_order):
            if after.place < before.place and after.label != before.label:
                told = f"number {after.number} of stream {stream} took effect before number {before.number}"
                found.append(Violation(Rule.ORDER, after.label, told, after.label))
    return found


def _poisons(world: World) -> list[Violation]:
    return [
        Violation(Rule.POISON_LOST, one.marker, f"it is not in {one.dead_letters}")
        for one in world.poisons
        if one.marker not in world.dead.get(one.dead_letters, set())
    ]
