"""What the clients for services make of servers that misbehave: always an error of their own, and in time."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from participant import OutboxClient
from participant.outbox_client import CallFailed, Invalid, Unavailable


@contextmanager
def server(*pieces: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that answers every request with the pieces, and a pause after each."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    connection.recv(100_000)
                    for piece in pieces:
                        connection.sendall(piece)
                        if over.wait(pause):
                            return
                except OSError:
                    pass  # the client has had enough

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listening.close()


def send(url: str, *, timeout: float = 5.0, retry: float = 0.0) -> None:
    with OutboxClient("tests", url, timeout_seconds=timeout, retry_seconds=retry) as client:
        client.send_message("billing", {})


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 %d Told" % status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_an_answer_that_drips_is_given_up_after_the_timeout() -> None:
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n"
    with server(head, *[b" "] * 100, pause=0.1) as url:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no whole answer within 0\.5 s"):
            send(url, timeout=0.5)
        assert time.monotonic() - began < 3


def test_a_broken_encoding_is_no_answer() -> None:
    with server(answer(201, b"not gzip", b"Content-Encoding: gzip")) as url, pytest.raises(Unavailable):
        send(url)


@pytest.mark.parametrize("errors", [b'["x"]', b'"x"', b'[{"loc": 1}]', b"null"])
def test_a_422_of_somebody_else_is_invalid_without_details(errors: bytes) -> None:
    with (
        server(answer(422, b'{"detail": "no", "errors": ' + errors + b"}")) as url,
        pytest.raises(Invalid, match="no") as caught,
    ):
        send(url)
    assert caught.value.errors == ()


def test_an_address_without_http_is_told_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(CallFailed, match="localhost:80 is no address"):
        send("localhost:80", retry=30)
    assert time.monotonic() - began < 3
