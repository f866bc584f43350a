"""How a REST process of ours serves: until SIGTERM or SIGINT, then it answers what is under way and ends."""

import logging
import socket
import sys
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI

#: libuv accepts one connection of a listening socket in a turn of the loop. Under load a turn takes 100 ms: with one
#: socket two thousand clients then waited for minutes to be accepted, while those that were accepted went round and
#: round. The same socket, listened to so many times over, has so many accepted a turn.
ACCEPTED_A_TURN = 32


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
    server.run(sockets=listeners(server.config))
    if not server.started:
        sys.exit(1)


def listeners(config: uvicorn.Config) -> list[socket.socket]:
    """One socket, bound to the host and port of ``config``, as often as connections are to be accepted in a turn.

    Exits with 1, and a line in the log, if it cannot be bound.
    """
    bound = config.bind_socket()
    return [bound, *(bound.dup() for _ in range(ACCEPTED_A_TURN - 1))]
