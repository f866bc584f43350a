"""The wiring of the coordinator, in this one place."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from coordinator import definitions, health, openapi, operators, sagas, transaction_openapi, unparking
from coordinator.backlog import Backlog
from coordinator.creation import Creation
from coordinator.creation_store import CreationStore
from coordinator.definition_store import DefinitionStore
from coordinator.encoding import Encoder
from coordinator.history import Histories
from coordinator.metrics import Metrics
from coordinator.request_store import RequestStore
from coordinator.requests import Requests
from coordinator.services import Services, kafka_topics
from coordinator.settings import APPLICATION, Settings
from coordinator.store import Store
from coordinator.submission import Submissions
from coordinator.transaction_store import TransactionStore
from coordinator.transaction_submission import TransactionSubmissions
from coordinator.transactions import Transactions
from coordinator.transactions import router as transactions_router
from coordinator.waiting import Waiting
from outbox_relay.directory import Directory
from outbox_relay.settings import DirectorySettings
from schemas import Codec
from web.admission import Admission, Sampling
from web.application import application
from web.database import Database

DESCRIPTION = """\
Starts distributed transactions and tells how they stand. A saga, or a two-phase commit, is durable once it
is answered with 201; the processors run it to its end through every crash. Errors are RFC 9457 problem documents.
"""


def create_app(
    settings: Settings,
    *,
    codec: Codec | None = None,
    topics: Callable[[], Iterable[str]] | None = None,
    directory: DirectorySettings | None = None,
) -> FastAPI:
    """Build the application. Nothing is connected before its lifespan begins.

    Args:
        codec: instead of one on the registry of the settings.
        topics: instead of asking Kafka; lists all topics, blocking.
        directory: where HTTP services are found and which hosts may be called; instead of the environment's.

    ``app.state.release_waiters()`` answers all long polls at once, for a graceful end.
    """
    metrics = Metrics()
    database = Database(settings, APPLICATION)
    store = Store(database)
    creation = Creation(CreationStore(database), settings.pool_queue)
    admission = Admission(settings, metrics, "transactions that no processor has begun", settings.max_backlog)
    backlog = Sampling(admission, Backlog(database, settings.max_backlog).measure, settings.backlog_seconds)
    waiting = Waiting(settings, metrics)
    services = Services(
        settings,
        metrics,
        topics or kafka_topics(settings.kafka_bootstrap_servers, settings.kafka_timeout_seconds),
    )
    encoder = Encoder(settings, codec or Codec(settings.schema_registry_url))
    addresses = directory or DirectorySettings.from_environment()
    registry = Directory(addresses)
    submissions = Submissions(settings, encoder, addresses.allow_list)
    registered = definitions.Definitions(settings, DefinitionStore(database), submissions)
    requests = Requests(settings, RequestStore(database), waiting, encoder)
    histories = Histories(settings, database)
    transactions = Transactions(
        settings,
        TransactionStore(database),
        creation,
        requests,
        waiting,
        TransactionSubmissions(settings, encoder, services, registry, addresses.allow_list),
        histories,
        metrics,
        admission,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        waiting.start()
        services.start()
        backlog.start()
        try:
            yield
        finally:
            await backlog.stop()
            await waiting.stop()
            await services.stop()
            await creation.stop()
            await requests.stop()
            await registry.close()
            await database.close()

    app = application(
        settings,
        metrics,
        *openapi.REQUESTS,
        *transaction_openapi.REQUESTS,
        title="Fluxora Transactions: coordinator",
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.include_router(
        sagas.router(
            sagas.Sagas(
                settings, store, creation, waiting, services, registered, submissions, histories, metrics, admission
            )
        )
    )
    app.include_router(definitions.router(registered))
    app.include_router(operators.router(operators.Operators(store, requests)))
    app.include_router(transactions_router(transactions))
    app.include_router(unparking.router(unparking.Unparking(store, TransactionStore(database), requests)))
    app.include_router(health.router(database, store, waiting, services, metrics))
    app.state.release_waiters = waiting.release
    return app
