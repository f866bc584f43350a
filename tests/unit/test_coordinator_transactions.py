"""What POST /transactions answers when a request comes again."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import orjson
import pytest
from fastapi import Request
from starlette.types import Message

from coordinator.creation import Created
from coordinator.metrics import Metrics
from coordinator.transactions import Transactions
from web.admission import Admission
from web.idempotency import digest
from web.problems import Problem, Unavailable

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
BODY = {"participants": [{"service_name": "alpha"}]}


class Submissions:
    """Those of a coordinator that cannot find out how a participant is reached."""

    async def make(self, *_: object) -> None:
        raise Unavailable("Kafka does not answer.")


class Creation:
    """Holds the key ``once``."""

    async def holder(self, key: str) -> Created | None:
        return Created(ID, digest("POST /transactions", BODY)) if key == "once" else None


def create(key: str, body: Any) -> Any:
    async def receive() -> Message:
        return {"type": "http.request", "body": orjson.dumps(body), "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"idempotency-key", key.encode())]
    request = Request({"type": "http", "method": "POST", "path": "/transactions", "headers": headers}, receive)
    parts: dict[str, Any] = dict.fromkeys(("settings", "store", "requests", "waiting", "histories"))
    metrics = Metrics()
    limits: Any = SimpleNamespace(max_creating=10, overload_retry_seconds=1)
    admission = Admission(limits, metrics, "transactions", 10)
    parts |= {"creation": Creation(), "submissions": Submissions(), "metrics": metrics, "admission": admission}
    return asyncio.run(Transactions(**parts).create(request))


def test_a_replay_is_answered_as_the_first_was_when_its_participants_cannot_be_found_any_more() -> None:
    answer = create("once", BODY)
    assert answer.status_code == 201
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert answer.headers["Location"] == f"/transactions/{ID}"
    assert orjson.loads(answer.body) == {"transaction_id": str(ID), "state": "STARTED"}


@pytest.mark.parametrize(("key", "body", "status"), [("new", BODY, 503), ("once", {"timeout_seconds": 9}, 422)])
def test_what_is_no_replay_is_refused_for_its_own_reason(key: str, body: Any, status: int) -> None:
    with pytest.raises(Problem) as told:
        create(key, body)
    assert told.value.status == status
