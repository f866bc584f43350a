"""A transaction that cannot be folded, on the real stack: seen, asked for, mended, and run to its end."""

from contextlib import suppress

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.command_line import fluxora
from tests.platform import Platform, Step, steps


def stored(platform: Platform, saga: str, progress: str | None = None) -> str:
    """What is stored of its progress; ``progress`` takes its place, and no process remembers what it was."""
    [(found,)] = platform.query("fluxora", "SELECT progress::text FROM transactions WHERE id = %s", saga)
    if progress is not None:
        platform.query("fluxora", "UPDATE transactions SET progress = %s WHERE id = %s RETURNING 1", progress, saga)
        killed = {name: platform.kill(name) for name in ("saga-processor-1", "saga-processor-2")}
        for name, pid in killed.items():
            platform.restarted(name, pid)
    return str(found)


def silent(platform: Platform) -> Step:
    """A step of a service that answers when the test does."""
    admin = AdminClient({"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"]})
    for made in admin.create_topics([NewTopic("unpark-silent.commands", 1, 1)]).values():
        with suppress(Exception):  # it is there already
            made.result(20)
    return Step("unpark-silent", {})


def answers(platform: Platform, saga: str) -> None:
    producer = Producer(
        {"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"], "partitioner": "murmur2_random"}
    )
    reply = {
        "transaction_id": saga,
        "command_id": f"{saga}:s0:action:1",
        "step": "s0",
        "operation": "ACTION",
        "attempt": 1,
        "outcome": "DONE",
        "result": "{}",
    }
    producer.produce("fluxora.transactions", platform.codec.encode("fluxora.StepReplied", reply), saga.encode())
    assert producer.flush(30) == 0


def test_a_saga_that_could_not_be_read_is_parked_mended_and_completed(platform: Platform) -> None:
    bad = platform.start([silent(platform), Step("alpha", {})], timeout_seconds=600)
    platform.until(lambda: platform.http.get(f"/sagas/{bad}").json()["state"] == "EXECUTING", "the saga did not begin")
    code, _, errors = fluxora(platform, "saga", "unpark", bad)
    assert code == 1
    assert "is not parked" in errors
    was = stored(platform, bad, "[1]")
    answers(platform, bad)
    platform.until(lambda: platform.http.get(f"/sagas/{bad}").json()["parked"], "it was not parked", 120)
    seen = platform.http.get(f"/sagas/{bad}").json()
    assert (seen["needs_attention"], seen["reason"]) == (True, "what is stored of its progress cannot be read")
    assert bad in [saga["saga_id"] for saga in platform.http.get("/sagas?needs_attention=true").json()["sagas"]]

    others = [platform.start(steps({}, {}, {})) for _ in range(12)]
    assert set(platform.wait_all(others).values()) == {"COMPLETED"}, "the others of its partition go on"

    code, _, errors = fluxora(platform, "saga", "unpark", bad, "--who", "olga", "--why", "let us see")
    assert code == 1
    assert "cannot be read" in errors
    platform.query("fluxora", "UPDATE transactions SET progress = %s WHERE id = %s RETURNING 1", was, bad)
    code, told, errors = fluxora(platform, "saga", "unpark", bad, "--who", "olga", "--why", "mended by hand")
    assert code == 0, errors
    assert told["parked"] is False
    assert platform.wait(bad)["state"] == "COMPLETED"
    assert platform.entries([bad])[bad] == {("s1", "ACTION"): 1}
    history = platform.http.get(f"/sagas/{bad}/history").json()["entries"]
    asked = [entry["input"] for entry in history if entry["type"] == "fluxora.RequestMade"]
    assert [(one["request"], one["who"], one["why"]) for one in asked] == [
        ("UNPARK", "olga", "let us see"),
        ("UNPARK", "olga", "mended by hand"),
    ]
    code, found, errors = fluxora(platform, "rebuild", "--verify")
    assert (code, found["differences"]) == (0, []), errors


def test_a_two_phase_commit_is_unparked_in_the_same_way(platform: Platform) -> None:
    answer = platform.http.post("/transactions", json={"timeout_seconds": 600})
    id = answer.json()["transaction_id"]
    platform.until(lambda: len(platform.http.get(f"/transactions/{id}/history").json()["entries"]), "not begun")
    was = stored(platform, id, '{"participants": 1}')
    answer = platform.http.post(f"/transactions/{id}/abort")
    assert answer.status_code == 202, "it is queued"
    platform.until(lambda: platform.http.get(f"/transactions/{id}").json()["parked"], "it was not parked", 120)
    assert platform.http.post(f"/transactions/{id}/unpark", json={"who": "olga"}).status_code == 409
    platform.query("fluxora", "UPDATE transactions SET progress = %s WHERE id = %s RETURNING 1", was, id)
    code, told, errors = fluxora(platform, "tx", "unpark", id, "--why", "mended by hand")
    assert (code, told) == (0, {"transaction_id": id, "state": "ABORTED", "decided": True}), errors
    assert platform.http.post(f"/transactions/{id}/unpark").status_code == 409
