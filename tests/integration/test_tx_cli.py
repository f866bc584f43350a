"""``fluxora tx list|show|commit|abort|indoubt`` as an operator calls them, against the running coordinator."""

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests import command_line
from tests.acceptance.test_transactions import Site, begin
from tests.platform import Platform


class Fluxora:
    """The command line, with only the coordinator's address in its environment."""

    def __init__(self, coordinator_url: str) -> None:
        self._environment = {
            name: value for name, value in os.environ.items() if not name.endswith(("_URL", "_SERVERS"))
        } | {"COORDINATOR_URL": coordinator_url, "COLUMNS": "160"}

    def plain(self, *arguments: str) -> tuple[int, str, str]:
        done = command_line.run("tx", *arguments, environment=self._environment)
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *arguments: str) -> Any:
        """What it prints as JSON; it must succeed, and print nothing else."""
        code, out, errors = self.plain(*arguments, "--json")
        assert (code, errors) == (0, ""), errors
        return json.loads(out)


@pytest.fixture
def tx(platform: Platform) -> Fluxora:
    return Fluxora(platform.endpoints["COORDINATOR_URL"])


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def prepared(platform: Platform, site: Site, *names: str) -> str:
    id = begin(platform, participants=[site.participant(name) for name in names], timeout_seconds=300)
    platform.http.post(f"/transactions/{id}/prepare")
    platform.transaction_in(id, "PREPARED")
    return id


def ended(platform: Platform, id: str) -> str:
    return str(platform.http.get(f"/transactions/{id}", params={"wait": "60s"}).json()["state"])


def test_an_operator_commits_what_is_prepared_and_the_journal_keeps_who_and_why(
    platform: Platform, site: Site, tx: Fluxora
) -> None:
    id = prepared(platform, site, "a", "b")
    told = tx("commit", id, "--who", "ann", "--why", "approved by hand")
    assert told["transaction_id"] == id
    if told.get("decided"):  # otherwise it was not within five seconds
        assert told["state"] in ("COMMITTING", "COMMITTED")
    assert ended(platform, id) == "COMMITTED"
    assert site.verbs(id, "a") == site.verbs(id, "b") == {"prepare", "commit"}
    shown = tx("show", id)
    assert (shown["transaction_id"], shown["state"]) == (id, "COMMITTED")
    assert [one["state"] for one in shown["participants"]] == ["COMMITTED", "COMMITTED"]
    [request] = [entry for entry in shown["history"] if (entry["input"] or {}).get("request") == "COMMIT"]
    assert (request["input"]["who"], request["input"]["why"]) == ("ann", "approved by hand")
    code, out, errors = tx.plain("show", id)
    assert (code, errors) == (0, "")
    assert "commit requested, who ann, why approved by hand" in out
    assert "COMMITTED" in out


def test_an_operator_aborts_and_cannot_turn_the_decision(platform: Platform, site: Site, tx: Fluxora) -> None:
    id = prepared(platform, site, "a")
    told = tx("abort", id, "--why", "the client is gone")
    assert told["transaction_id"] == id
    assert ended(platform, id) == "ABORTED"
    assert site.verbs(id, "a") == {"prepare", "abort"}
    code, out, errors = tx.plain("commit", id, "--json")
    assert (code, out) == (1, "")
    assert "ABORTED" in errors, "the state that does not allow it is named"
    assert ended(platform, id) == "ABORTED"


def test_the_list_is_narrowed_by_state_participant_and_age(platform: Platform, site: Site, tx: Fluxora) -> None:
    name = f"p-{uuid.uuid4().hex[:8]}"
    first = prepared(platform, site, name)
    second = begin(platform, participants=[site.participant(name)], timeout_seconds=300)

    def listed(*options: str) -> list[str]:
        return [one["transaction_id"] for one in tx("list", "--participant", name, *options)]

    assert listed() == [second, first], "the newest first"
    assert listed("--state", "PREPARED") == [first]
    assert listed("--state", "PREPARED", "--state", "STARTED") == [second, first]
    assert listed("--limit", "1") == [second]
    assert listed("--older-than", "1h") == []
    assert listed("--younger-than", "1h", "--state", "STARTED") == [second]
    assert listed("--attention") == []
    [one] = [one for one in tx("list", "--participant", name) if one["transaction_id"] == first]
    assert (one["state"], one["participants"], one["needs_attention"]) == ("PREPARED", [name], False)
    code, out, _ = tx.plain("list", "--participant", name)
    assert code == 0
    assert first in out and second in out
    tx("abort", first)
    tx("abort", second)


def test_what_a_participant_keeps_from_its_end_is_in_doubt_until_it_answers(
    platform: Platform, site: Site, tx: Fluxora
) -> None:
    id = prepared(platform, site, "good", "stuck")
    site.answers["stuck", "commit"] = 500
    tx("commit", id)

    def in_doubt(older_than: str) -> list[str]:
        return [one["transaction_id"] for one in tx("indoubt", "--older-than", older_than)]

    assert id in in_doubt("0s")
    assert id not in in_doubt("1h")

    def stuck() -> Any:
        shown = tx("show", id)
        assert shown["state"] == "COMMITTING"
        return next(one for one in shown["participants"] if one["service_name"] == "stuck")

    platform.until(lambda: stuck()["reason"], "the participant's answer is not in")
    assert stuck()["state"] == "PREPARED"
    assert "500" in stuck()["reason"]
    site.answers.clear()
    assert ended(platform, id) == "COMMITTED"
    assert id not in in_doubt("0s")


@pytest.mark.parametrize("verb", ["show", "commit", "abort"])
def test_an_unknown_id_and_one_that_is_none_fail_in_words(tx: Fluxora, verb: str) -> None:
    unknown = str(uuid.uuid4())
    code, out, errors = tx.plain(verb, unknown, "--json")
    assert (code, out) == (1, "")
    assert unknown in errors
    code, out, errors = tx.plain(verb, "nonsense", "--json")
    assert (code, out) == (1, "")
    assert "Traceback" not in errors


def test_a_coordinator_that_is_not_there_is_told_in_words() -> None:
    code, out, errors = Fluxora("http://127.0.0.1:9").plain("list", "--json")
    assert (code, out) == (1, "")
    assert "127.0.0.1:9" in errors
    assert "Traceback" not in errors
