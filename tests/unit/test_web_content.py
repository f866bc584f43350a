"""What a client prefers, and bodies that may be left out."""

import asyncio
from collections.abc import Sequence

import pytest
from fastapi import Request
from pydantic import BaseModel
from starlette.types import Message

from web.content import read, responds_async
from web.problems import Malformed, Problem


def request(body: bytes = b"", **headers: Sequence[str]) -> Request:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, values in headers.items() for value in values]

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": given, "query_string": b""}, receive)


@pytest.mark.parametrize(
    ("prefer", "wanted"),
    [
        ([], False),
        (["respond-async"], True),
        (["wait=10, Respond-Async"], True),
        (["return=minimal", "respond-async; foo=bar"], True),
        (["respond-asynchronously"], False),
        (["wait=10"], False),
    ],
)
def test_a_client_may_prefer_not_to_wait(prefer: list[str], wanted: bool) -> None:
    assert responds_async(request(prefer=prefer)) is wanted


class _Why(BaseModel):
    why: str | None = None


def test_a_body_may_be_left_out() -> None:
    body, plain = asyncio.run(read(request(), _Why))
    assert body.why is None and plain == {}


def test_a_body_that_is_there_is_json_and_says_so() -> None:
    body, plain = asyncio.run(read(request(b'{"why":"x"}', content_type=["application/json"]), _Why))
    assert body.why == "x" and plain == {"why": "x"}
    with pytest.raises(Problem) as told:
        asyncio.run(read(request(b'{"why":"x"}'), _Why))
    assert told.value.status == 415
    with pytest.raises(Malformed):
        asyncio.run(read(request(b"{", content_type=["application/json"]), _Why))
