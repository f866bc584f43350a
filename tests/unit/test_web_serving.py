"""How connections come in, in the loop that serves them."""

import asyncio
import contextlib
import socket

import uvicorn
import uvloop
from fastapi import FastAPI

from web.serving import ACCEPTED_A_TURN, Server

CLIENTS = 8 * ACCEPTED_A_TURN


def test_many_connections_are_accepted_in_one_turn_of_the_loop() -> None:
    """A turn is long when there is much to do, and nobody is to wait for as many turns as there are clients."""

    async def turns() -> int:
        server = Server(uvicorn.Config(FastAPI(), host="127.0.0.1", port=0, log_config=None), release=lambda: None)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(30):
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        count = 0
        with contextlib.ExitStack() as clients:
            for _ in range(CLIENTS):
                client = clients.enter_context(socket.socket())
                client.connect(address)  # it is in the queue of the one socket then, not accepted
            while (accepted := len(server.server_state.connections)) < CLIENTS:
                await asyncio.sleep(0)
                count += 1
                assert count < CLIENTS, f"{accepted} of {CLIENTS} are accepted"
        server.should_exit = True
        await serving
        return count

    assert uvloop.run(turns()) <= 2 * CLIENTS / ACCEPTED_A_TURN
