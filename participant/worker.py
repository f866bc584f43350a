"""The process of a service: commands from Kafka, through the batch, until it is told to stop.

``participant.stream`` says how records come and what a crash leaves.
"""

from collections.abc import Iterable, Sequence

import structlog
from confluent_kafka import KafkaException as KafkaFailure
from confluent_kafka import Message
from prometheus_client import Counter
from sqlalchemy import Engine, create_engine

from participant.batch import AnyReply, Batch
from participant.dead_letters import DeadLetters
from participant.handlers import Handlers
from participant.incoming import AnyCommand, decoder
from participant.local_transaction import Retry, limit_idle_transactions
from participant.resources import ResourceManager
from participant.settings import CONNECT, Settings, sqlalchemy_url
from participant.stream import Hold, Stream, header
from participant.sweep import sweep_from_environment
from participant.two_phase import Participant
from schemas import Codec, UndecodableRecord

log = structlog.get_logger(__name__)

COMMANDS = Counter("fluxora_commands_total", "Commands handled", ["service", "operation", "outcome"])
DEAD = Counter("fluxora_commands_dead_lettered_total", "Commands put into the dead letter topic", ["service"])


class Worker:
    """Consumes ``<service>.commands`` as the group ``<service>``."""

    def __init__(
        self, service: str, handlers: Handlers, settings: Settings, participant: Participant | None = None
    ) -> None:
        """``participant`` takes part in two-phase commits; without one, every prepare is refused."""
        self._service = service
        self._engine: Engine = create_engine(
            sqlalchemy_url(settings.database_url),
            pool_size=1,
            max_overflow=1,
            isolation_level="READ COMMITTED",
            connect_args={"application_name": f"fluxora-{service}", **CONNECT},
        )
        limit_idle_transactions(self._engine, settings.transaction_idle_limit_s)
        codec = Codec(settings.schema_registry_url)
        self._decode = decoder(codec)
        self._dead_letters = DeadLetters(settings.kafka_bootstrap_servers, service)
        #: The records of the batch in hand, by command id, for the dead letters.
        self._records: dict[str, Message] = {}
        #: Undecodable records of the batch in hand that have their letter: a retried batch writes no second one.
        self._buried: set[tuple[int | None, int | None]] = set()
        self._batch = Batch(
            self._engine,
            handlers,
            codec,
            service=service,
            idle_limit_s=settings.transaction_idle_limit_s,
            dead_letter=self._bury,
            observe=self._observe,
            participant=participant or ResourceManager(self._engine, service=service),
        )
        self._sweep = None if participant is None else sweep_from_environment(participant)
        self._stream = Stream(
            [f"{service}.commands"],
            self._work,
            settings,
            group=service,
            missing_topic="`fluxora service add` creates it",
        )

    def run(self) -> None:
        """Consume until ``stop``; then finish the batch in hand, commit its offsets and leave the group."""
        if self._sweep is not None:
            self._sweep.start()
        try:
            self._stream.run()
        finally:
            if self._sweep is not None:
                self._sweep.stop()
            self._engine.dispose()

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe from a signal handler or another thread."""
        self._stream.stop()

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and SIGINT. Only from the main thread."""
        self._stream.stop_on_signals()

    def _work(self, messages: Sequence[Message]) -> Sequence[Hold]:
        self._batch.handle(self._commands(messages))
        # Not after an exception: the same batch comes again.
        self._records.clear()
        self._buried.clear()
        return ()

    def _commands(self, messages: Iterable[Message]) -> list[AnyCommand]:
        commands = []
        for message in messages:
            try:
                command = self._decode(message.value(), header(message, "traceparent"))
            except UndecodableRecord as error:
                place = (message.partition(), message.offset())
                if place not in self._buried:
                    self._put(message, error, stage="VALUE_CONVERTER")
                    self._buried.add(place)
                continue
            self._records[command.command_id] = message
            commands.append(command)
        return commands

    def _bury(self, command: AnyCommand, error: BaseException) -> None:
        self._put(self._records[command.command_id], error, stage="TASK_PUT")

    def _put(self, message: Message, error: BaseException, *, stage: str) -> None:
        letters = self._dead_letters.topic(message.topic() or "")
        try:
            self._dead_letters.put(message, error, stage=stage)
        except KafkaFailure as failure:
            raise Retry(f"the dead letter topic {letters} does not take it: {failure}") from failure
        DEAD.labels(self._service).inc()
        log.error(
            "dead_lettered",
            service=self._service,
            topic=letters,
            partition=message.partition(),
            offset=message.offset(),
            error=repr(error),
        )

    def _observe(self, command: AnyCommand, reply: AnyReply) -> None:
        COMMANDS.labels(self._service, command.operation.value, reply.outcome.value).inc()
