"""``python -m coordinator``: serve until SIGTERM or SIGINT, then answer what is under way and end."""

import logging
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


def _configure_log() -> None:
    """JSON lines, or colours for a person; those of uvicorn, psycopg and asyncio too."""
    steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    shown = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*steps, shown],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=shown, foreign_pre_chain=steps))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # a line each second while PostgreSQL is down


def main() -> None:
    _configure_log()
    settings = Settings.from_environment()
    server = _Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,  # /metrics counts; a line for each request would cost more than the request
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    server.run()
    if not server.started:
        sys.exit(1)


main()
