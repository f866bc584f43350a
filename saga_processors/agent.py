"""The Faust worker: membership, assignment and delivery; deciding is the processor's (FAUST.md says why).

Crash-only: whatever goes wrong in a batch ends the process at once, so that Faust cannot acknowledge what was not
folded; the supervisor starts it again and the partition row says where to go on.
"""

import asyncio
import gc
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import faust
import structlog
import uvloop
from faust.types import TP, EventT
from yarl import URL

from participant.health import HealthServer
from saga_processors.delivery import Transport, Undecoded
from saga_processors.log import APP_ID, INPUT_TOPIC, InputLog, Publisher
from saga_processors.partition import Record
from saga_processors.processor import Processor
from saga_processors.settings import ProcessorSettings
from saga_processors.store import Store
from schemas import Codec

log = structlog.get_logger()

_EX_TEMPFAIL = 75
#: Seconds between two looks at whether this process is in its group.
_WATCH_EVERY_S = 1.0


class SagaWorker:
    """One processor process: a Faust app whose agent feeds a queue, and the task that empties it in batches.

    Batches form by themselves: what arrives while one is being folded is the next one. So at low load nothing
    waits for a batch to fill, and at high load batches grow.
    """

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings
        #: An event holds what was fetched of one partition (saga_processors.delivery).
        self._queue: asyncio.Queue[EventT[Any]] = asyncio.Queue(settings.queue_size)
        self._processor: Processor | None = None
        self._delivered = 0
        self._ready = False
        self._health = HealthServer(
            settings.health_port, live=list, ready=self._not_ready_because, host=settings.health_host
        )
        self.app = faust.App(
            APP_ID,
            broker=f"aiokafka://{settings.kafka_bootstrap_servers}",
            consumer_group_instance_id=settings.instance,
            broker_session_timeout=settings.session_timeout,
            broker_heartbeat_interval=settings.session_timeout / 6,
            broker_commit_interval=1.0,
            broker_max_poll_records=settings.batch_size,
            # Small, so that no partition waits while the backlog of another one is read.
            consumer_max_fetch_size=256 * 1024,
            consumer_auto_offset_reset="earliest",
            stream_buffer_maxsize=settings.queue_size,
            # A stop does not wait for the buffers: what is left in them comes again.
            stream_wait_empty=False,
            key_serializer="raw",
            value_serializer="raw",
            # The fast paths that the released extensions only pretended to have.
            cython_optimizations=True,
            topic_disable_leader=True,
            topic_allow_declare=False,
            # It would listen on all interfaces.
            web_enabled=False,
            store="memory://",
            # Nothing is kept there, but Faust wants a directory of its own.
            datadir=os.path.join(tempfile.gettempdir(), "fluxora-faust"),
            table_standby_replicas=0,
            worker_redirect_stdouts=False,
        )
        self._transport = Transport([URL(f"aiokafka://{settings.kafka_bootstrap_servers}")], self.app)
        self.app.transport = self._transport
        self.app.agent(self.app.topic(INPUT_TOPIC, schema=Undecoded()))(self._receive)
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.task(self._run)

    def main(self) -> None:
        """Run until a signal; does not return normally."""
        self._health.start()
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        # Its own set-up leaves the loggers at DEBUG and filters in the handler, so that every debug message of
        # every record is made and thrown away: 7 % of the processor's CPU.
        logging.basicConfig(
            stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        threading.Thread(target=self._watch, name="membership", daemon=True).start()
        faust.Worker(self.app, override_logging=False, redirect_stdouts=False).execute_from_commandline()

    def _watch(self) -> None:
        """End the process that Faust lets live on outside its group. A thread, because before the first assignment
        Faust runs nothing of ours."""
        try:
            while (failure := self._transport.failure()) is None:
                time.sleep(_WATCH_EVERY_S)
        except BaseException as error:  # whatever these libraries have come to hold: it is no longer known
            _end(error)
        _end(ConnectionError(f"no longer a member of {APP_ID}: {failure!r}"))

    def _not_ready_because(self) -> list[str]:
        return [] if self._ready else ["has not joined its consumer group, or has not taken over its partitions"]

    async def _receive(self, stream: faust.StreamT[bytes]) -> None:
        async for event in stream.noack().events():
            self._delivered += 1
            await self._queue.put(event)

    async def _revoked(self, app: faust.App, revoked: Iterable[TP], **_: Any) -> None:
        if self._processor is not None:
            await self._processor.drop(tp.partition for tp in revoked if tp.topic == INPUT_TOPIC)

    def _owned(self) -> list[int]:
        return sorted(tp.partition for tp in self.app.consumer.assignment() if tp.topic == INPUT_TOPIC)

    async def _run(self) -> None:
        # Counts every event several times over, for a web page that is off. It is added when the app starts.
        self.app.sensors.remove(self.app.monitor)
        try:
            self._processor = await self._connect()
            _settle_heap()
            await asyncio.gather(self._fold(self._processor), self._catch_up(self._processor))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _end(error)

    async def _connect(self) -> Processor:
        settings = self._settings
        input_log = InputLog(settings.kafka_bootstrap_servers)
        return Processor(
            store=await Store.connect(
                settings.database_url, settings.instance, idle_limit=settings.transaction_idle_limit
            ),
            codec=Codec(settings.schema_registry_url),
            input_log=input_log,
            publisher=Publisher(settings.kafka_bootstrap_servers, settings.publish_timeout),
            topic_id=await input_log.topic_id(),
            partitions=await input_log.partition_count(),
            batch_size=settings.batch_size,
            cache_size=settings.cache_size,
            max_steps=settings.max_steps,
            policy=settings.policy,
        )

    async def _fold(self, processor: Processor) -> None:
        def leave(events: list[EventT[Any]]) -> None:
            for event in events:
                # A hint for the group's next member; next_offset in the partition row is what counts.
                event.ack()

        left: list[EventT[Any]] = []
        while True:
            events = [await self._queue.get()]
            waiting = len(events[0].value)
            while waiting < self._settings.batch_size and not self._queue.empty():
                events.append(self._queue.get_nowait())
                waiting += len(events[-1].value)
            owned = set(self._owned())
            await processor.handle(
                [_record(one) for event in events if event.message.partition in owned for one in event.value]
            )
            # The effects of these leave while the next ones are folded; those of the events before have left.
            leave(left)
            left = events
            if self._queue.empty():
                await processor.settle()
                leave(left)
                left = []

    async def _catch_up(self, processor: Processor) -> None:
        delivered = -1
        while True:
            owned = self._owned()
            await processor.adopt(owned)
            # When Faust has delivered nothing at all meanwhile, what is missing has been skipped; otherwise it
            # may just be busy with other partitions.
            idle = self._delivered == delivered and self._queue.empty()
            delivered = self._delivered
            await processor.catch_up(owned, stuck_after=0.0 if idle else self._settings.stuck_after)
            self._ready = bool(owned) or self._ready
            await asyncio.sleep(self._settings.catch_up_interval if self._ready else 0.1)


def _end(error: BaseException) -> NoReturn:
    log.critical("processor ends; it will be started again", error=repr(error), exc_info=error)
    sys.stderr.flush()
    os._exit(_EX_TEMPFAIL)


def _settle_heap() -> None:
    """Have the cyclic collector leave alone what lives as long as the process, and look more seldom at what is new.

    Thousands of sagas under way survive it and bring on full collections, each of which walked all of Faust too: 15 %
    of the fold's CPU, of which 3 % are left. The fold makes no cycles, so what waits for a collection is little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _record(fetched: Any) -> Record:
    """From what aiokafka fetched."""
    return Record(fetched.partition, fetched.offset, fetched.timestamp, fetched.key, fetched.value)
