"""What becomes of the body of POST /sagas before anything is written."""

import asyncio
import io
import json
import struct
from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.encoding import Encoder
from coordinator.models import SagaRequest
from coordinator.settings import Settings
from coordinator.submission import Submission, Submissions
from schemas import SCHEMAS, Codec
from web.content import parse, traceparent
from web.idempotency import digest, idempotency_key
from web.problems import Malformed, Problem, TooLarge

STEP = {"service_name": "billing"}
SAGA = {"name": "order", "steps": [STEP]}


class OfflineCodec(Codec):
    """Writes real Avro; the registry's id is always 1."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")

    def _header(self, name: str) -> bytes:
        return struct.pack(">bI", 0, 1)


def settings(**changes: Any) -> Settings:
    return Settings(
        database_url="postgresql://nowhere",
        kafka_bootstrap_servers="nowhere:1",
        schema_registry_url="http://nowhere",
        **changes,
    )


CODEC = OfflineCodec()


def submit(body: bytes, **changes: Any) -> Submission:
    wanted, _ = parse(SagaRequest, body)
    return asyncio.run(_make(wanted, settings(**changes)))


async def _make(wanted: SagaRequest, limits: Settings) -> Submission:
    return await Submissions(limits, Encoder(limits, CODEC)).make(wanted, None)


def refused(document: Any, **changes: Any) -> Problem:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Problem) as told:
        submit(body, **changes)
    return told.value


def fields(problem: Problem) -> list[str]:
    return [error["field"] for error in problem.members["errors"]]


def test_a_saga_is_stored_with_every_default_written_out() -> None:
    made = submit(orjson.dumps(SAGA))
    stored = orjson.loads(made.definition)
    assert stored["name"] == "order" and "transaction_id" not in stored
    assert stored["steps"][0] | {"retry": None} == {
        "name": "step-1",
        "service_name": "billing",
        "command": "step-1",
        "payload": "{}",
        "depends_on": [],
        "kind": "COMPENSATABLE",
        "retry": None,
        "timeout_ms": 30_000,
        "action_endpoint": None,
        "compensation_endpoint": None,
    }
    assert made.services == ["billing"] and made.transaction_id.version == 7


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [STEP] * 2000}, "steps"),
        ({"steps": [{}]}, "steps[0].service_name"),
        ({"steps": [STEP | {"name": "a"}, STEP | {"name": "a"}]}, "steps[1].name"),
        ({"steps": [STEP | {"depends_on": ["nobody"]}]}, "steps[0].depends_on"),
        ({"steps": [STEP | {"name": "a", "depends_on": ["a"]}]}, "steps.depends_on"),
        ({"steps": [STEP | {"depends_on": ["a"] * 100_000}]}, "steps[0].depends_on"),
        ({"steps": [STEP | {"kind": "pivot"}, STEP]}, "steps[0].kind"),
        ({"steps": [STEP | {"kind": "other"}]}, "steps[0].kind"),
        ({"steps": [STEP | {"action_endpoint": "/reserve"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"compensation_endpoint": "/release"}]}, "steps[0].compensation_endpoint"),
        ({"steps": [STEP | {"retry": {"max_attempts": 0}}]}, "steps[0].retry.max_attempts"),
        ({"steps": [STEP | {"retry": {"attempts": 3}}]}, "steps[0].retry.attempts"),
        ({"steps": [STEP | {"timeout_seconds": "3"}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"timeout_seconds": 0.001}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"timeout_seconds": 1e300}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"payload": 2**64}]}, "steps[0].payload"),
        ({"steps": "none"}, "steps"),
        ({"name": ""}, "name"),
        ({"name": "nul\u0000"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"saga_id": "7"}, "saga_id"),
        ({"unknown": 1}, "unknown"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
    ],
)
def test_a_broken_rule_is_told_with_its_field(change: dict[str, Any], field: str) -> None:
    problem = refused(SAGA | change)
    assert isinstance(problem, Malformed)
    assert fields(problem) == [field]
    assert len(problem.response().body) < 2000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"name": NaN}',
        b"\xff",
        b'{"name":"x","steps":[{"service_name":"a","payload":NaN}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":[1e999]}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":"\\ud800"}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
        b'{"name":"x","steps":[{"service_name":"a","payload":' + b"[" * 300 + b"]" * 300 + b"}]}",
    ],
)
def test_what_is_no_json_of_ours_is_malformed(body: bytes) -> None:
    assert isinstance(refused(body), Malformed)


def test_http_steps_are_refused_in_clear_words() -> None:
    problem = refused(SAGA | {"steps": [STEP | {"action_endpoint": "/x"}]})
    assert "next release" in problem.members["errors"][0]["rule"]


def test_a_payload_over_the_limit_is_too_large_and_one_at_the_limit_is_not() -> None:
    fits = orjson.dumps(SAGA | {"steps": [STEP | {"payload": "é" * 50}]})
    assert submit(fits, max_payload_bytes=102)
    problem = refused(fits, max_payload_bytes=101)
    assert isinstance(problem, TooLarge) and fields(problem) == ["steps[0].payload"]


def test_a_saga_that_grows_past_a_kafka_record_is_too_large() -> None:
    # Five bytes of JSON become nineteen when they are written anew.
    numbers = b"[" + b",".join([b"1e15"] * 13_000) + b"]"
    step = b'{"service_name":"a","payload":' + numbers + b"}"
    body = b'{"name":"x","steps":[' + b",".join([step] * 8) + b"]}"
    assert len(body) < settings().max_body_bytes
    assert isinstance(refused(body), TooLarge)


def test_nul_in_a_payload_is_kept_as_an_escape() -> None:
    made = submit(orjson.dumps(SAGA | {"steps": [STEP | {"payload": {"a\x00": "\x00"}}]}))
    assert orjson.loads(made.definition)["steps"][0]["payload"] == '{"a\\u0000":"\\u0000"}'
    assert b"\x00" not in made.definition


def test_a_digest_knows_content_and_not_spelling() -> None:
    one = digest("POST /sagas", orjson.loads(b'{"a":1,"b":[1,2]}'))
    assert one == digest("POST /sagas", orjson.loads(b'{ "b": [1, 2], "a": 1 }'))
    assert one != digest("POST /sagas", orjson.loads(b'{"a":1,"b":[2,1]}'))


@pytest.mark.parametrize("values", [["a", "b"], [""], ["x" * 256], ["ü"], [" x"], ["a\x00"]])
def test_a_bad_idempotency_key_is_malformed(values: list[str]) -> None:
    with pytest.raises(Malformed):
        idempotency_key(values)


def test_an_idempotency_key_may_be_a_quoted_string() -> None:
    assert idempotency_key(['"8e03978e-40d5"']) == '"8e03978e-40d5"'
    assert idempotency_key([]) is None


def test_an_invalid_traceparent_is_ignored() -> None:
    valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert traceparent(valid) == valid
    for bad in (None, "", "x", valid.upper(), "00-" + "0" * 32 + "-00f067aa0ba902b7-01", valid + "-0"):
        assert traceparent(bad) is None


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
_STEP = st.fixed_dictionaries(
    {"service_name": st.sampled_from(["billing", "a.b-c"]) | _JSON},
    optional={
        name: _JSON | valid
        for name, valid in {
            "name": st.sampled_from(["a", "b", "c"]),
            "command": st.just("do"),
            "payload": _JSON,
            "depends_on": st.lists(st.sampled_from(["a", "b", "step-1"]), max_size=3),
            "kind": st.sampled_from(["compensatable", "pivot", "retriable"]),
            "retry": st.fixed_dictionaries({}, optional={"max_attempts": st.integers(), "jitter": st.floats()}),
            "timeout_seconds": st.floats(),
            "action_endpoint": st.none(),
        }.items()
    },
)
_SAGA = st.fixed_dictionaries(
    {"name": st.just("order") | _JSON, "steps": st.lists(_STEP, max_size=4) | _JSON},
    optional={"timeout_seconds": st.floats() | _JSON, "saga_id": st.uuids().map(str) | _JSON, "other": _JSON},
)


@given(_SAGA)
def test_any_json_is_a_whole_saga_or_a_problem(document: Any) -> None:
    try:
        made = submit(json.dumps(document).encode())
    except (Malformed, TooLarge) as problem:
        orjson.loads(problem.response().body)
        return
    sent = fastavro.schemaless_reader(io.BytesIO(made.payload[5:]), SCHEMAS["fluxora.SagaStarted"], None)
    stored = orjson.loads(made.definition)
    assert sent == stored | {"transaction_id": str(made.transaction_id)}
    for step, given_step in zip(stored["steps"], document["steps"], strict=True):
        assert orjson.loads(step["payload"]) == given_step.get("payload", {})


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed(body: bytes) -> None:
    assert isinstance(refused(body), Malformed)
