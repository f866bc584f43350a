"""How connections come in, in the loop that serves them."""

import asyncio
import contextlib
import socket

import uvicorn
import uvloop
from fastapi import FastAPI

from web.serving import ACCEPTED_A_TURN, listeners

CLIENTS = 20 * ACCEPTED_A_TURN


def test_many_connections_are_accepted_in_one_turn_of_the_loop() -> None:
    """A turn is long when there is much to do, and nobody is to wait for as many turns as there are clients."""

    async def turns() -> int:
        accepted = 0

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal accepted
                accepted += 1

        sockets = listeners(uvicorn.Config(FastAPI(), host="127.0.0.1", port=0))
        loop, count = asyncio.get_running_loop(), 0
        servers = [await loop.create_server(Accepted, sock=one, backlog=CLIENTS) for one in sockets]
        with contextlib.ExitStack() as clients:
            for _ in range(CLIENTS):
                client = clients.enter_context(socket.socket())
                client.connect(sockets[0].getsockname())  # it is in the queue of the one socket then, not accepted
            while accepted < CLIENTS:
                await asyncio.sleep(0)
                count += 1
                assert count < CLIENTS, f"{accepted} of {CLIENTS} are accepted"
        for server in servers:
            server.close()
        return count

    assert uvloop.run(turns()) <= 2 * CLIENTS / ACCEPTED_A_TURN
