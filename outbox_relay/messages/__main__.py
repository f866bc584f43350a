"""``python -m outbox_relay.messages``: serve and deliver until SIGTERM or SIGINT, then finish what is under way."""

import sys

from pydantic import ValidationError

from outbox_relay.messages.app import create_app
from outbox_relay.messages.rules import InvalidRules
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.settings import DirectorySettings
from web.serving import configure_log, serve


def main() -> None:
    configure_log()
    try:
        settings = MessageSettings.from_environment()
        app = create_app(settings, DirectorySettings.from_environment())
    except (ValidationError, InvalidRules) as error:
        sys.exit(f"outbox service: {error}")
    serve(
        app,
        host=settings.host,
        port=settings.port,
        shutdown_seconds=settings.shutdown_seconds,
        release=app.state.stop_claiming,
    )


main()
