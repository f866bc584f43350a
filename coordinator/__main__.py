"""``python -m coordinator``: serve until SIGTERM or SIGINT, then answer what is under way and end."""

from coordinator.app import create_app
from coordinator.settings import Settings
from web.serving import configure_log, serve


def main() -> None:
    configure_log()
    settings = Settings.from_environment()
    app = create_app(settings)
    serve(
        app,
        host=settings.host,
        port=settings.port,
        shutdown_seconds=settings.shutdown_seconds,
        release=app.state.release_waiters,
    )


main()
