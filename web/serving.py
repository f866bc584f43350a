"""How a REST process of ours serves: until SIGTERM or SIGINT, then it answers what is under way and ends."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

import structlog
import uvicorn
from fastapi import FastAPI

#: libuv accepts one connection of a listening socket in a turn of the loop. Under load a turn takes 100 ms: with one
#: socket two thousand clients then waited for minutes to be accepted, while those that were accepted went round and
#: round. The same socket, listened to so many times over, has so many accepted a turn.
ACCEPTED_A_TURN = 32


class Server(uvicorn.Server):
    """Accepts many connections in a turn of the loop. At its end it lets long polls go; uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, release: Callable[[], None]) -> None:
        super().__init__(config)
        self._release = release

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        made_by = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        protocol = partial(made_by, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        loop = asyncio.get_running_loop()
        for listening in [one for server in self.servers for one in server.sockets]:
            for _ in range(ACCEPTED_A_TURN - 1):
                again = socket.socket(fileno=os.dup(listening.fileno()))
                self.servers.append(await loop.create_server(protocol, sock=again, backlog=self.config.backlog))

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
    server = Server(
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
