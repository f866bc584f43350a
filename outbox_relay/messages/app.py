"""The wiring of the Outbox Service, in this one place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from outbox_relay.directory import Directory
from outbox_relay.messages import health, routes
from outbox_relay.messages.acceptance import Acceptance
from outbox_relay.messages.confirmation import Confirmation
from outbox_relay.messages.delivery import Delivery, Ways
from outbox_relay.messages.destinations import HttpDestinations
from outbox_relay.messages.letters import Letters
from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.models import MessageRequest
from outbox_relay.messages.posting import Poster
from outbox_relay.messages.rules import Rules
from outbox_relay.messages.settings import APPLICATION, MessageSettings
from outbox_relay.messages.store import Store
from outbox_relay.messages.topics import Topics, list_topics
from outbox_relay.messages.upkeep import Upkeep
from outbox_relay.settings import DirectorySettings
from web.admission import Admission
from web.application import application
from web.database import Database

DESCRIPTION = """\
Takes messages for services and delivers them at least once, in order per destination and key: over HTTP to
`POST <service>/messages`, or to the service's topic. Receivers drop second copies by the `Idempotency-Key` header, or
by `ce_id` on Kafka. Errors are RFC 9457 problem documents.
"""


def create_app(settings: MessageSettings, places: DirectorySettings) -> FastAPI:
    """Build the application. Nothing is connected before its lifespan begins.

    ``app.state.stop_claiming()`` begins a graceful end: no further attempt is made.

    Raises:
        InvalidRules: the file of rules cannot be used.
    """
    metrics = Metrics()
    rules = Rules(settings.rules)
    database = Database(settings, APPLICATION)
    store = Store(database)
    topics = Topics(settings, list_topics(settings))
    directory = Directory(places)
    ways = Ways(directory, topics, HttpDestinations(database))
    poster = Poster(settings.attempt_timeout_seconds, settings.concurrency)
    delivery = Delivery(settings, store, ways, poster, metrics)
    confirmation = Confirmation(settings, store, metrics)
    letters = Letters(settings, store, metrics)
    admission = Admission(settings, metrics, "messages that are not delivered", settings.max_backlog)
    upkeep = Upkeep(settings, store, rules, metrics, admission)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        topics.start()
        delivery.start()
        confirmation.start()
        letters.start()
        upkeep.start()
        try:
            yield
        finally:
            await delivery.stop(settings.shutdown_seconds)
            await confirmation.stop()
            await letters.stop()
            await upkeep.stop()
            await topics.stop()
            await poster.close()
            await directory.close()
            await database.close()

    app = application(
        settings,
        metrics,
        MessageRequest,
        title="Fluxora Transactions: outbox service",
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.include_router(
        routes.router(
            routes.Messages(settings, Acceptance(database), store, delivery, ways, rules, upkeep, metrics, admission)
        )
    )
    app.include_router(health.router(database, store, topics, confirmation, rules, metrics))
    app.state.stop_claiming = delivery.stop_claiming
    return app
