"""``python -m coordinator``: serve until SIGTERM or SIGINT, then answer what is under way and end."""

import socket
import sys

import structlog
import uvicorn

from coordinator.app import create_app
from coordinator.settings import Settings


class _Server(uvicorn.Server):
    """Lets long polls go as soon as the end is asked for; uvicorn would wait for each of them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        app.state.release_waiters()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def main() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    settings = Settings.from_environment()
    server = _Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=False,  # /metrics counts; a line for each request would cost more than the request
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    server.run()
    if not server.started:
        sys.exit(1)


main()
