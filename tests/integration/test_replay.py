"""Records of a topic once more: found, copied, dropped by who has done them already."""

import uuid
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Message

from tests.command_line import fluxora
from tests.platform import Platform, steps

EVENTS = "fluxora.transactions.events"


@pytest.fixture(scope="module")
def saga(platform: Platform) -> str:
    id = platform.start(steps({}, {}))
    assert platform.wait(id)["state"] == "COMPLETED"
    return id


def headers(message: Message) -> dict[str, bytes]:
    return dict(message.headers() or [])  # type: ignore[arg-type]


def offsets(platform: Platform, topic: str, key: str) -> list[tuple[int, int]]:
    return [(m.partition(), m.offset()) for m in platform.records_of(topic, key)]  # type: ignore[misc]


def test_without_being_asked_twice_nothing_is_sent(platform: Platform, saga: str) -> None:
    before = offsets(platform, EVENTS, saga)
    code, told, errors = fluxora(platform, "replay", EVENTS, "--key", saga)
    assert code == 0, errors
    assert (told["matched"], told["keys"], told["sent"], told["target"]) == (len(before), 1, None, None)
    assert sum(told["types"].values()) == len(before)
    assert offsets(platform, EVENTS, saga) == before


def test_copies_go_to_a_side_topic_with_everything_they_had(platform: Platform, saga: str) -> None:
    code, told, errors = fluxora(platform, "replay", EVENTS, "--transaction", saga, "--send", "--who", "ann")
    assert code == 0, errors
    originals, copies = platform.records_of(EVENTS, saga), platform.records_of(f"{EVENTS}.replay", saga)
    assert told["sent"] == len(originals) == len(copies)
    for original, copy in zip(originals, copies, strict=True):
        assert headers(copy) == headers(original) | {"replay-id": told["replay_id"].encode()}
        assert (copy.value(), copy.partition(), copy.timestamp()[1]) == (
            original.value(),
            original.partition(),
            original.timestamp()[1],
        )
    [row] = platform.query(
        "fluxora",
        "SELECT who, source, target, selection->>'key', matched, sent, error, finished_at IS NOT NULL "
        "FROM replays WHERE id = %s",
        told["replay_id"],
    )
    assert row == ("ann", EVENTS, f"{EVENTS}.replay", saga, len(copies), len(copies), None, True)
    again = fluxora(platform, "replay", f"{EVENTS}.replay", "--key", saga)[1]
    assert (again["matched"], again["copies"]) == (0, len(copies)), "copies are not copied again"


def test_inputs_and_commands_that_come_again_to_their_own_topics_change_nothing(platform: Platform, saga: str) -> None:
    """The machine has settled the replies; the inbox has the commands."""
    entries = platform.entries([saga])
    for topic in ("alpha.commands", "fluxora.transactions"):
        sent = fluxora(platform, "replay", topic, "--key", saga, "--really")[1]["sent"]
        assert sent > 0
    replayed = len(platform.records_of("fluxora.transactions", saga))

    def folded() -> bool:
        return len(outcomes(platform, saga)) == replayed

    platform.until(folded, "the copies were not folded")
    counts = Counter(outcomes(platform, saga))
    assert counts["IGNORED"] >= replayed // 2
    assert platform.wait(saga)["state"] == "COMPLETED"
    assert platform.entries([saga]) == entries


def outcomes(platform: Platform, saga: str) -> list[str]:
    return [row[0] for row in platform.query("fluxora", "SELECT outcome FROM journal WHERE transaction_id = %s", saga)]


@pytest.mark.parametrize(
    ("options", "matches"),
    [
        (["--type", "*SagaCompleted"], 1),
        (["--type", "no.such.type"], 0),
        (["--from", "1h"], None),
        (["--to", "2020-01-01T00:00:00Z"], 0),
        (["--from", "2999-01-01T00:00:00+00:00"], 0),
    ],
)
def test_a_selection_takes_what_it_says(platform: Platform, saga: str, options: list[str], matches: int | None) -> None:
    told: Any = fluxora(platform, "replay", EVENTS, "--key", saga, *options)[1]
    wanted = len(platform.records_of(EVENTS, saga)) if matches is None else matches
    assert told["matched"] == wanted


def test_offsets_are_taken_exactly(platform: Platform, saga: str) -> None:
    (partition, first), *_ = offsets(platform, EVENTS, saga)
    told = fluxora(platform, "replay", EVENTS, "--offsets", f"{partition}:{first}-{first}")[1]
    assert (told["looked_at"], told["matched"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.such.topic"], "there is no topic"),
        ([EVENTS, "--offsets", "0:5-3"], "PARTITION:FIRST-LAST"),
        ([EVENTS, "--offsets", "0:0-999999999"], "holds"),
        ([EVENTS, "--from", "yesterday"], "RFC 3339"),
        ([EVENTS, "--send", "--to-topic", "fluxora.transactions.dlq"], "partitions"),
    ],
)
def test_what_does_not_fit_says_what_to_do(platform: Platform, saga: str, arguments: list[str], says: str) -> None:
    code, told, errors = fluxora(platform, "replay", *arguments)
    assert (code, told) == (1, None)
    assert says in errors


def test_a_rate_is_kept(platform: Platform, saga: str) -> None:
    topic = f"paced.{uuid.uuid4().hex[:8]}"
    began = platform.query("fluxora", "SELECT clock_timestamp()")[0][0]
    told = fluxora(platform, "replay", EVENTS, "--key", saga, "--send", "--to-topic", topic, "--rate", "4")[1]
    [(took,)] = platform.query(
        "fluxora", "SELECT extract(epoch FROM finished_at - started_at) FROM replays WHERE id = %s", told["replay_id"]
    )
    assert began is not None
    assert float(took) >= (told["sent"] - 1) / 4
