"""Records from Faust in batches: one event holds what was fetched of a partition, not one record.

Faust spends about four tasks and six calls on every event that it hands over (``Consumer._drain_messages`` waits for
each with ``wait_first``): more than deciding about the record costs. Its consumer, which does membership, assignment
and fetching, gives the event; so an event that holds all records of one fetch of one partition costs as much once.

What Faust commits is a hint for the group's next member (FAUST.md; the partition row's ``next_offset`` counts), so an
event stands for the offset of its last record, and the offsets before it are no gap.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import faust
from faust.transport.drivers import aiokafka
from faust.types import TP
from faust.types.tuples import ConsumerMessage, Message


class _PartitionAtATime:
    """In place of Faust's round robin over single records; takes its form."""

    def iterate(self, records: Mapping[TP, Sequence[Any]]) -> Iterator[tuple[TP, Sequence[Any]]]:
        return iter(records.items())


class _BatchConsumer(aiokafka.Consumer):  # type: ignore[misc]  # Faust has no types here
    """Faust's consumer, with all records of a partition's fetch in one message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scheduler = _PartitionAtATime()

    def _to_message(self, tp: TP, records: Sequence[Any]) -> Message:
        message: ConsumerMessage = super()._to_message(tp, records[-1])
        message.value = records
        return message

    def failure(self) -> BaseException | None:
        """See the transport's.

        aiokafka tells it to callers of its own ``getmany``, where Faust goes past it, and until somebody has heard it
        does nothing more about its membership: the member would live on, deaf. Seen when a broker comes back and knows
        no broker yet.
        """
        member = self._thread._consumer
        coordinator = None if member is None or member._closed else member._coordinator
        if coordinator is None:
            return None  # it has not begun yet, or is at its end
        for task in (coordinator._coordination_task, member._client._sync_task):
            if task.cancelled():
                return asyncio.CancelledError(f"{task!r}")
            if task.done():
                return cast("BaseException | None", task.exception()) or RuntimeError(f"{task!r} has ended")
        return cast("BaseException | None", coordinator._pending_exception)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """The offsets before an event's own are those of its other records."""

    def _new_offset(self, tp: TP) -> int | None:
        acked: list[int] = self._acked[tp]
        if not acked:
            return None
        # In order: what is acknowledged has been folded, and everything of its partition before it.
        newest = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return newest + 1


class Transport(aiokafka.Transport):  # type: ignore[misc]
    """Faust's transport over aiokafka, with the consumer above."""

    Consumer = _BatchConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._made: _BatchConsumer | None = None

    def create_consumer(self, *args: Any, **kwargs: Any) -> _BatchConsumer:
        self._made = super().create_consumer(*args, **kwargs)
        return self._made

    def failure(self) -> BaseException | None:
        """Why this process takes no more part in its group; None while it does. Safe from any thread."""
        return None if self._made is None else self._made.failure()


class Undecoded(faust.Schema):  # type: ignore[misc]
    """Hands over the records as they were fetched."""

    def loads_key(self, app: Any, message: Message, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        return message.value
