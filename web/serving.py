"""How a REST process of ours serves: until SIGTERM or SIGINT, then it answers what is under way and ends."""

import logging
import socket
import sys
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI


class _Server(uvicorn.Server):
    """Lets long polls go as soon as the end is asked for; uvicorn would wait for each of them."""

    def __init__(self, config: uvicorn.Config, release: Callable[[], None]) -> None:
        super().__init__(config)
        self._release = release

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._release()
        await super().shutdown(sockets)


def configure_log() -> None:
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


def serve(app: FastAPI, *, host: str, port: int, shutdown_seconds: int, release: Callable[[], None]) -> None:
    """Serve ``app``; exits with 1 if it cannot start.

    Args:
        shutdown_seconds: after SIGTERM, how long running requests may take to end.
        release: called first then; lets requests that wait for something answer at once.
    """
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,  # /metrics counts; a line for each request would cost more than the request
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=shutdown_seconds,
        ),
        release,
    )
    server.run()
    if not server.started:
        sys.exit(1)
