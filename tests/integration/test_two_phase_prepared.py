"""PreparedTransactionManager on a real PostgreSQL: the database's own prepared transactions, and orphans of them."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, Engine

from participant import InvalidService, StillBusy, TransactionEnded, UnknownTransaction
from participant.sweep import Sweep, SweepSettings
from tests.integration.fix_participant import addresses, database_url, engine, migrated_url
from tests.integration.fix_two_phase import Bank, another_engine, bank, prepared_manager, withdraw
from tests.integration.test_two_phase_resources import crash

__all__ = ["addresses", "another_engine", "bank", "database_url", "engine", "migrated_url"]  # fixtures


def new() -> str:
    return str(uuid.uuid4())


def test_prepared_work_is_invisible_until_the_commit_and_there_once_after_it(bank: Bank) -> None:
    bank.open(ada=10)
    manager, t = prepared_manager(bank.engine), new()
    assert manager.prepare(t, withdraw("ada", 3))
    assert manager.prepare(t, withdraw("ada", 3)), "again: the prepared transaction is found"
    assert bank.balances() == {"ada": 10}
    assert len(bank.gids()) == 1
    manager.commit(t)
    manager.commit(t)
    assert bank.balances() == {"ada": 7}
    assert bank.gids() == []
    assert manager.prepare(t, withdraw("ada", 3)), "a late copy"
    with pytest.raises(TransactionEnded, match="COMMITTED here and cannot abort"):
        manager.abort(t)
    assert bank.balances() == {"ada": 7}


def test_an_abort_rolls_back_and_is_remembered(bank: Bank) -> None:
    bank.open(ada=10)
    manager, t, never = prepared_manager(bank.engine), new(), new()
    assert manager.prepare(t, withdraw("ada", 3))
    for id in (t, t, never):
        manager.abort(id)
    for id in (t, never):
        assert not manager.prepare(id, withdraw("ada", 3))
        with pytest.raises(TransactionEnded, match="ABORTED"):
            manager.commit(id)
    assert (bank.balances(), bank.gids()) == ({"ada": 10}, [])


def test_a_commit_of_what_is_unknown_is_never_guessed(bank: Bank) -> None:
    with pytest.raises(UnknownTransaction):
        prepared_manager(bank.engine).commit(new())


@pytest.mark.parametrize(("account", "amount", "why"), [("bob", 1, "there is no account"), ("ada", 11, "violates")])
def test_work_that_cannot_be_done_is_a_no_that_stays(bank: Bank, account: str, amount: int, why: str) -> None:
    bank.open(ada=10)
    manager, t = prepared_manager(bank.engine), new()
    vote = manager.prepare_payload(t, {"account": account, "amount": amount})
    assert not vote
    assert why in str(vote.reason)
    bank.open(bob=10)
    assert not manager.prepare_payload(t, {"account": "bob", "amount": 1})
    assert bank.gids() == []


def test_a_row_that_another_prepared_transaction_has_is_refused_after_the_bound(bank: Bank) -> None:
    bank.open(ada=10)
    manager, t, u = prepared_manager(bank.engine, lock_wait_s=0.2), new(), new()
    assert manager.prepare(t, withdraw("ada", 3))
    assert manager.prepare(u, withdraw("ada", 3)).reason == "another transaction is at work on the same rows"
    manager.commit(t)


def test_a_copy_of_a_prepare_in_progress_is_not_told_no(bank: Bank) -> None:
    """A no says that nothing is held; the first copy is about to hold something."""
    bank.open(ada=10)
    manager, t = prepared_manager(bank.engine, lock_wait_s=0.2), new()

    def meets_its_copy(connection: Connection) -> None:
        withdraw("ada", 3)(connection)
        with pytest.raises(StillBusy):
            manager.prepare(t, withdraw("ada", 3))

    assert manager.prepare(t, meets_its_copy)
    manager.commit(t)
    assert bank.balances() == {"ada": 7}


def test_work_that_raises_or_commits_holds_nothing(bank: Bank) -> None:
    bank.open(ada=10)
    manager = prepared_manager(bank.engine)

    def broken(connection: Connection) -> None:
        withdraw("ada", 3)(connection)
        raise ValueError("broken")

    def commits(connection: Connection) -> None:
        withdraw("ada", 3)(connection)
        connection.commit()

    with pytest.raises(ValueError, match="broken"):
        manager.prepare(new(), broken)
    with pytest.raises(Exception, match="two-phase transaction"):
        manager.prepare(new(), commits)
    assert (bank.balances(), bank.gids()) == ({"ada": 10}, [])


def test_of_prepare_commit_and_abort_at_once_the_table_tells_one_story(bank: Bank, another_engine: Engine) -> None:
    bank.open(ada=1000)
    manager = prepared_manager(another_engine, lock_wait_s=2)
    start = threading.Barrier(3)

    def attempt(call: Any, *arguments: Any) -> str:
        start.wait()
        try:
            return str(bool(call(*arguments)))
        except (TransactionEnded, UnknownTransaction, StillBusy) as error:
            return type(error).__name__

    spent = 0
    with ThreadPoolExecutor(3) as pool:
        for _ in range(15):
            t = new()
            jobs = [
                pool.submit(attempt, manager.prepare, t, withdraw("ada", 1)),
                pool.submit(attempt, manager.commit, t),
                pool.submit(attempt, manager.abort, t),
            ]
            _, commit, abort = [job.result() for job in jobs]
            if abort == "StillBusy":
                manager.abort(t)
                abort = "False"
            spent += commit == "False"
            assert (commit == "False") == (bank.state(t) == "COMMITTED"), (commit, abort)
            assert (abort == "False") == (bank.state(t) == "ABORTED"), (commit, abort)
            assert bank.balances() == {"ada": 1000 - spent}
            assert bank.gids() == []


@pytest.mark.parametrize("line", ["before_commit", "after_commit"])
def test_a_process_that_dies_preparing_leaves_a_prepared_transaction_or_nothing(bank: Bank, line: str) -> None:
    bank.open(ada=10)
    t = new()
    crash(bank.engine, "prepared", "prepare", line, t)
    assert len(bank.gids()) == (1 if line == "after_commit" else 0)
    manager = prepared_manager(bank.engine)
    assert manager.prepare(t, withdraw("ada", 3))
    manager.commit(t)
    assert bank.balances() == {"ada": 7}


def test_orphans_are_found_and_ended_as_the_coordinator_says(bank: Bank) -> None:
    bank.open(ada=10, bob=10, carol=10)
    manager, foreign = prepared_manager(bank.engine), prepared_manager(bank.engine, service="other")
    committed, aborted, of_others = new(), new(), new()
    assert manager.prepare(committed, withdraw("ada", 1))
    assert manager.prepare(aborted, withdraw("bob", 1))
    assert foreign.prepare(of_others, withdraw("carol", 1))
    assert {one.transaction_id for one in manager.undecided(0, 10)} == {committed, aborted}
    states = {committed: "COMMITTED", aborted: "ABORTED"}

    def coordinator(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"state": states[request.url.path.removeprefix("/transactions/")]})

    client = httpx.Client(transport=httpx.MockTransport(coordinator), base_url="http://coordinator")
    with Sweep(manager, SweepSettings(older_than_s=0), client) as sweep:
        swept = sweep.once()
    assert (swept.committed, swept.aborted, swept.waiting) == (1, 1, 0)
    assert bank.balances() == {"ada": 9, "bob": 10, "carol": 10}
    foreign.abort(of_others)
    assert bank.gids() == []


def test_a_service_name_that_is_no_branch_qualifier_is_refused(bank: Bank) -> None:
    with pytest.raises(InvalidService, match="64"):
        prepared_manager(bank.engine, service="x" * 65)
