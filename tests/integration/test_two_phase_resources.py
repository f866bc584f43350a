"""ResourceManager on a real PostgreSQL: what is promised, what is refused, and what is left after a crash."""

import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from participant import (
    CannotApply,
    Change,
    InvalidChange,
    InvalidService,
    Refused,
    ResourceManager,
    StillBusy,
    TransactionEnded,
    UnknownTransaction,
)
from participant.whole import WholeTransaction
from tests.integration.fix_participant import addresses, database_url, engine, migrated_url
from tests.integration.fix_two_phase import Bank, another_engine, bank, manager_of

__all__ = ["addresses", "another_engine", "bank", "database_url", "engine", "migrated_url"]  # fixtures


def new() -> str:
    return str(uuid.uuid4())


def test_what_is_prepared_is_invisible_until_the_commit_and_then_is_there_once(bank: Bank) -> None:
    bank.open(ada=100)
    t = new()
    assert bank.manager.prepare(t, "ada", "update", {"balance": 70}, resource="accounts")
    assert bank.balances() == {"ada": 100}
    assert bank.held() == {("accounts", "ada", t)}
    bank.manager.commit(t)
    bank.sql("UPDATE accounts SET balance = 5")
    bank.manager.commit(t)
    assert bank.balances() == {"ada": 5}
    assert bank.held() == set()


@pytest.mark.parametrize(
    ("operation", "data", "after"),
    [("create", {"balance": 3}, {"ada": 1, "new": 3}), ("update", {"balance": 9}, {"ada": 9}), ("delete", None, {})],
)
def test_each_operation_does_what_it_says(bank: Bank, operation: str, data: Any, after: dict[str, int]) -> None:
    bank.open(ada=1)
    t = new()
    assert bank.manager.prepare(t, "new" if operation == "create" else "ada", operation, data, resource="accounts")
    bank.manager.commit(t)
    assert bank.balances() == after


@pytest.mark.parametrize(
    ("id", "operation", "data", "why"),
    [
        ("ada", "create", {"balance": 1}, "already exists"),
        ("bob", "update", {"balance": 1}, "there is no accounts bob"),
        ("bob", "delete", None, "there is no accounts bob"),
        ("ada", "update", {"balance": -1}, "violates check constraint"),
        ("bob", "create", {"balance": None}, "violates not-null constraint"),
        ("bob", "create", {"balance": "much"}, "invalid input syntax"),
        ("bob", "create", {"balance": {"a": 1}}, "cannot adapt"),
    ],
)
def test_what_could_not_be_committed_is_refused_and_holds_nothing(
    bank: Bank, id: str, operation: str, data: Any, why: str
) -> None:
    bank.open(ada=1)
    t = new()
    vote = bank.manager.prepare(t, id, operation, data, resource="accounts")
    assert not vote
    assert why in str(vote.reason)
    assert bank.held() == set()
    assert bank.balances() == {"ada": 1}
    with pytest.raises(TransactionEnded, match="ABORTED"):
        bank.manager.commit(t)


@pytest.mark.parametrize(
    ("one", "field"),
    [
        ({"resource_id": "a", "operation": "create", "data": {}}, "operations[0].resource"),
        ({"resource": "things", "resource_id": "a", "operation": "create", "data": {}}, "operations[0].resource"),
        ({"resource": "accounts", "operation": "create", "data": {}}, "operations[0].resource_id"),
        ({"resource": "accounts", "resource_id": "", "operation": "create", "data": {}}, "operations[0].resource_id"),
        ({"resource": "accounts", "resource_id": "a\x00", "operation": "delete"}, "operations[0].resource_id"),
        ({"resource": "accounts", "resource_id": "a", "operation": "upsert", "data": {}}, "operations[0].operation"),
        ({"resource": "accounts", "resource_id": "a", "operation": "create"}, "operations[0].data"),
        ({"resource": "accounts", "resource_id": "a", "operation": "update", "data": {}}, "operations[0].data"),
        ({"resource": "accounts", "resource_id": "a", "operation": "update", "data": {"x": 1}}, "operations[0].data"),
        (
            {"resource": "accounts", "resource_id": "a", "operation": "update", "data": {"id": "b"}},
            "operations[0].data",
        ),
        ({"resource": "accounts", "resource_id": "a", "operation": "delete", "data": {"x": 1}}, "operations[0].data"),
        ({"resource": "orders", "resource_id": "a", "operation": "delete"}, "operations[0].resource_id"),
        ({"resource": "accounts", "resource_id": "a", "operation": "create", "data": {"x": {1}}}, "operations[0].data"),
    ],
)
def test_a_call_that_breaks_a_rule_names_the_field_and_leaves_no_trace(
    bank: Bank, one: dict[str, Any], field: str
) -> None:
    t = new()
    with pytest.raises(InvalidChange) as error:
        bank.manager.prepare_all(t, [one])
    assert error.value.field == field
    assert bank.state(t) is None


@pytest.mark.parametrize("id", ["", "x" * 65, "a\nb", "é", 7])
def test_an_id_that_cannot_be_a_key_is_refused(bank: Bank, id: Any) -> None:
    with pytest.raises(InvalidChange, match="transaction_id"):
        bank.manager.abort(id)


def test_a_uuid_is_the_same_id_in_any_spelling(bank: Bank) -> None:
    bank.open(ada=1)
    t = uuid.uuid4()
    assert bank.manager.prepare(str(t).upper(), "ada", "delete", resource="accounts")
    bank.manager.commit(t)
    assert bank.balances() == {}


def test_a_resource_that_is_held_is_refused_to_another_transaction_at_once_and_free_after_it(bank: Bank) -> None:
    bank.open(ada=1)
    first, second, third = new(), new(), new()
    assert bank.manager.prepare(first, "ada", "update", {"balance": 2}, resource="accounts")
    vote = bank.manager.prepare(second, "ada", "update", {"balance": 3}, resource="accounts")
    assert not vote
    assert vote.reason == f"accounts ada is held by the transaction {first}"
    bank.manager.abort(first)
    assert bank.manager.prepare(third, "ada", "update", {"balance": 4}, resource="accounts")
    # The second said no, and its coordinator has aborted it: a late copy of its prepare must not take hold now.
    bank.manager.abort(third)
    assert not bank.manager.prepare(second, "ada", "update", {"balance": 3}, resource="accounts")
    assert bank.held() == set()


def test_two_services_in_one_database_do_not_see_each_others_transactions(bank: Bank) -> None:
    bank.open(ada=1)
    other = manager_of(bank.engine, service="other")
    t = new()
    assert bank.manager.prepare(t, "ada", "update", {"balance": 2}, resource="accounts")
    with pytest.raises(UnknownTransaction):
        other.commit(t)
    other.abort(t)
    bank.manager.commit(t)


def test_several_resources_are_prepared_all_or_none(bank: Bank) -> None:
    bank.open(ada=10, bob=10)
    t, u, v = new(), new(), new()
    both = [
        {"resource": "money", "resource_id": "ada", "operation": "update", "data": {"amount": -4}},
        {"resource": "money", "resource_id": "bob", "operation": "update", "data": {"amount": 4}},
    ]
    assert bank.manager.prepare_all(t, both)
    carol = {"resource": "money", "resource_id": "carol", "operation": "update", "data": {"amount": 1}}
    assert not bank.manager.prepare_all(u, [carol, both[0]])
    assert {transaction for _, _, transaction in bank.held()} == {t}
    assert bank.manager.prepare_all(t, reversed(both)), "the same changes again"
    bank.manager.commit(t)
    assert bank.balances() == {"ada": 6, "bob": 14}
    with pytest.raises(InvalidChange, match="comes twice"):
        bank.manager.prepare_all(v, [both[0], both[0]])


def test_a_no_to_a_further_resource_keeps_what_was_promised(bank: Bank) -> None:
    bank.open(ada=10, bob=10)
    t, u = new(), new()
    assert bank.manager.prepare(u, "bob", "delete", resource="accounts")
    assert bank.manager.prepare(t, "ada", "update", {"balance": 1}, resource="accounts")
    assert not bank.manager.prepare(t, "bob", "update", {"balance": 1}, resource="accounts")
    assert not bank.manager.prepare(t, "ada", "update", {"balance": 2}, resource="accounts"), "another content"
    assert bank.manager.prepare(t, "ada", "update", {"balance": 1}, resource="accounts")
    bank.manager.commit(t)
    assert bank.balances()["ada"] == 1


def test_changes_are_applied_in_their_order_so_one_may_need_another(bank: Bank) -> None:
    t = new()
    assert bank.manager.prepare(t, "ada", "create", {"balance": 5}, resource="accounts")
    # The rehearsal knows the account that is only promised; `validate` of "money" looks at what is there.
    assert not bank.manager.prepare(new(), "ada", "update", {"amount": 1}, resource="money")
    bank.manager.resource("gift", apply=lambda connection, change: gift(connection, change))
    assert bank.manager.prepare(t, "ada", "update", {"amount": 2}, resource="gift")
    bank.manager.commit(t)
    assert bank.balances() == {"ada": 7}


def gift(connection: Connection, change: Change) -> Refused | None:
    done = connection.execute(
        text("UPDATE accounts SET balance = balance + :amount WHERE id = :id"),
        {"amount": change.data["amount"], "id": change.resource_id},
    )
    return None if done.rowcount else Refused("nobody to give to")


def test_a_unique_value_is_promised_to_one_transaction_only(bank: Bank) -> None:
    bank.open(ada=1)
    first, second = new(), new()
    assert bank.manager.prepare(first, "bob", "create", {"email": "b@x", "balance": 1}, resource="accounts")
    vote = bank.manager.prepare(second, "ada", "update", {"email": "b@x"}, resource="accounts")
    assert not vote
    assert "accounts(email)" in str(vote.reason)
    bank.manager.commit(first)
    vote = bank.manager.prepare(new(), "ada", "update", {"email": "b@x"}, resource="accounts")
    assert "already exists" in str(vote.reason)


def test_a_commit_that_somebody_else_has_made_impossible_fails_and_can_be_tried_again(bank: Bank) -> None:
    bank.open(ada=1)
    t, u = new(), new()
    assert bank.manager.prepare(t, "ada", "update", {"balance": 2}, resource="accounts")
    assert bank.manager.prepare(u, "bob", "create", {"balance": 2}, resource="accounts")
    bank.sql("DELETE FROM accounts")
    bank.open(bob=7)
    with pytest.raises(CannotApply):
        bank.manager.commit(t)
    with pytest.raises(IntegrityError):
        bank.manager.commit(u)
    assert {bank.state(t), bank.state(u)} == {"PREPARED"}
    bank.sql("DELETE FROM accounts")
    bank.open(ada=1)
    bank.manager.commit(t)
    bank.manager.commit(u)
    assert bank.balances() == {"ada": 2, "bob": 2}


def test_a_commit_of_what_is_unknown_is_never_guessed(bank: Bank) -> None:
    with pytest.raises(UnknownTransaction):
        bank.manager.commit(new())


def test_an_abort_that_comes_first_is_remembered_and_refuses_the_late_prepare(bank: Bank) -> None:
    bank.open(ada=1)
    t = new()
    bank.manager.abort(t)
    bank.manager.abort(t)
    vote = bank.manager.prepare(t, "ada", "delete", resource="accounts")
    assert (bool(vote), vote.reason) == (False, "the transaction was aborted here before")
    with pytest.raises(TransactionEnded, match="ABORTED here and cannot commit"):
        bank.manager.commit(t)


def test_a_committed_transaction_cannot_be_aborted_nor_prepared_further(bank: Bank) -> None:
    bank.open(ada=1, bob=1)
    t = new()
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts")
    bank.manager.commit(t)
    with pytest.raises(TransactionEnded, match="COMMITTED here and cannot abort"):
        bank.manager.abort(t)
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts"), "a late copy of the same call"
    assert not bank.manager.prepare(t, "bob", "delete", resource="accounts")
    assert bank.held() == set()


def test_a_transaction_without_work_is_prepared_and_committed(bank: Bank) -> None:
    t = new()
    assert bank.manager.prepare_payload(t, {})
    bank.manager.commit(t)
    assert bank.state(t) == "COMMITTED"


def test_the_callers_transaction_is_neither_committed_nor_lost(bank: Bank) -> None:
    bank.open(ada=1)
    t, u = new(), new()
    with bank.engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        connection.execute(text("INSERT INTO orders VALUES (1, 'mine')"))
        assert bank.manager.prepare(t, "ada", "update", {"balance": 2}, resource="accounts", connection=connection)
        vote = bank.manager.prepare(u, "ada", "create", {"balance": -2}, resource="accounts", connection=connection)
        assert not vote
        with pytest.raises(UnknownTransaction):
            bank.manager.commit(new(), connection=connection)
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "7s"
        assert bank.state(t) is None, "not committed yet"
        bank.manager.commit(t, connection=connection)
        connection.commit()
    assert bank.balances() == {"ada": 2}
    assert bank.sql("SELECT note FROM orders") == [("mine",)]
    with bank.engine.connect() as connection:
        bank.manager.abort(new(), connection=connection)
        v = new()
        assert bank.manager.prepare(v, "ada", "delete", resource="accounts", connection=connection)
        connection.rollback()
    assert bank.state(v) is None
    assert bank.held() == set()


def test_of_many_threads_that_race_for_a_resource_exactly_one_wins(bank: Bank, another_engine: Engine) -> None:
    bank.open(ada=1)
    manager = manager_of(another_engine)
    start = threading.Barrier(12)

    def race(number: int) -> tuple[str, bool]:
        t = new()
        start.wait()
        return t, bool(manager.prepare(t, "ada", "update", {"balance": number}, resource="accounts"))

    with ThreadPoolExecutor(12) as pool:
        for _ in range(10):
            votes = dict(pool.map(race, range(12)))
            (winner,) = [t for t, yes in votes.items() if yes]
            assert bank.held() == {("accounts", "ada", winner)}
            manager.abort(winner)


def test_of_commit_and_abort_at_once_one_wins_and_the_other_is_told(bank: Bank, another_engine: Engine) -> None:
    manager = manager_of(another_engine)

    def attempt(call: Any, t: str) -> str:
        while True:
            try:
                call(t)
            except StillBusy:
                continue  # as the coordinator does
            except (TransactionEnded, UnknownTransaction) as error:
                return type(error).__name__
            return "done"

    with ThreadPoolExecutor(3) as pool:
        for number in range(30):
            t = new()
            id = f"a{number}"
            prepared = pool.submit(manager.prepare, t, id, "create", {"balance": 1}, resource="accounts")
            if number % 2:
                prepared.result()
            ends = [pool.submit(attempt, manager.commit, t), pool.submit(attempt, manager.abort, t)]
            commit, abort = [end.result() for end in ends]
            vote = bool(prepared.result())
            if commit == "done":
                assert (vote, abort, bank.state(t)) == (True, "TransactionEnded", "COMMITTED")
            else:
                assert (abort, bank.state(t)) == ("done", "ABORTED")
            assert (id in bank.balances()) == (commit == "done")
    assert bank.held() == set()


def test_a_row_that_somebody_has_locked_is_refused_after_the_bound(bank: Bank) -> None:
    bank.open(ada=1)
    manager = manager_of(bank.engine, lock_wait_s=0.2)
    t, u = new(), new()
    assert manager.prepare(u, "ada", "update", {"balance": 3}, resource="accounts")
    manager.abort(u)
    with bank.engine.connect() as other:
        other.execute(text("SELECT * FROM accounts FOR UPDATE"))
        vote = manager.prepare(t, "ada", "update", {"balance": 2}, resource="accounts")
    assert vote.reason == "another transaction is at work on the same rows"


def test_a_prepare_in_progress_delays_others_only_for_the_bound(bank: Bank) -> None:
    bank.open(ada=1)
    manager = manager_of(bank.engine, lock_wait_s=0.2)
    t = new()
    with bank.engine.connect() as other:
        assert manager.prepare(t, "ada", "delete", resource="accounts", connection=other)
        assert not manager.prepare(new(), "ada", "delete", resource="accounts")
        # Not a no: this very call might be the one that comes to a yes.
        with pytest.raises(StillBusy):
            manager.prepare(t, "ada", "delete", resource="accounts")
        with pytest.raises(StillBusy):
            manager.abort(t)
        other.commit()
    manager.commit(t)
    assert bank.balances() == {}


def test_funds_are_reserved_at_prepare_and_go_back_at_abort(bank: Bank) -> None:
    """The pattern for money that others spend too: what is promised is taken away at once."""
    bank.open(ada=10)
    manager = ResourceManager(bank.engine, service="funds")

    def reserve(connection: Connection, change: Change) -> Refused | None:
        done = connection.execute(
            text("UPDATE accounts SET balance = balance - :a WHERE id = :id AND balance >= :a"),
            {"a": change.data["amount"], "id": change.resource_id},
        )
        return None if done.rowcount else Refused("not enough money")

    manager.resource(
        "withdrawal",
        reserve=reserve,
        apply=lambda connection, change: None,
        release=lambda connection, change: connection.execute(
            text("UPDATE accounts SET balance = balance + :a WHERE id = :id"),
            {"a": change.data["amount"], "id": change.resource_id},
        ),
    )
    t, u = new(), new()
    assert manager.prepare(t, "ada", "update", {"amount": 7})
    assert bank.balances() == {"ada": 3}
    manager.abort(t)
    manager.abort(t)
    assert bank.balances() == {"ada": 10}
    assert not manager.prepare(u, "ada", "update", {"amount": 11})
    assert bank.balances() == {"ada": 10}


def test_handlers_for_the_whole_transaction_each_take_effect_once(bank: Bank) -> None:
    called: list[str] = []

    def prepare(connection: Connection, transaction_id: str, payload: Any) -> Refused | None:
        called.append("prepare")
        return Refused("as asked") if payload.get("refuse") else None

    whole = WholeTransaction(
        bank.engine,
        service="own",
        prepare=prepare,
        commit=lambda connection, transaction_id, payload: called.append(f"commit {payload['n']}"),
        abort=lambda connection, transaction_id, payload: called.append(f"abort {payload['n']}"),
    )
    t, u, v = new(), new(), new()
    for _ in range(2):
        assert whole.prepare_payload(t, {"n": 1})
        assert whole.prepare_payload(u, {"n": 2})
        assert not whole.prepare_payload(v, {"refuse": True})
    for _ in range(2):
        whole.commit(t)
        whole.abort(u)
        whole.abort(v)
    assert called == ["prepare", "prepare", "prepare", "commit 1", "abort 2"]


def test_the_service_can_ask_who_holds_a_resource(bank: Bank) -> None:
    bank.open(ada=1)
    t = new()
    with bank.engine.begin() as connection:
        assert bank.manager.held(connection, "ada", resource="accounts") is None
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts")
    with bank.engine.begin() as connection:
        assert bank.manager.held(connection, "ada", resource="accounts") == t


def test_what_has_ended_long_ago_is_forgotten_and_what_is_promised_never(bank: Bank) -> None:
    bank.open(ada=1, bob=1)
    t, u = new(), new()
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts")
    assert bank.manager.prepare(u, "bob", "delete", resource="accounts")
    bank.manager.commit(t)
    assert bank.manager.forget(3600) == 0
    bank.sql(
        "UPDATE fluxora.prepared SET ended_at = ended_at - interval '2 h', prepared_at = prepared_at - interval '2 h'"
    )
    assert bank.manager.forget(3600) == 1
    assert [one.transaction_id for one in bank.manager.undecided(3600, 10)] == [u]
    with pytest.raises(UnknownTransaction):
        bank.manager.commit(t)
    bank.manager.commit(u)


def test_a_table_with_a_compound_key_needs_functions(bank: Bank) -> None:
    from sqlalchemy import Column, Integer, MetaData, Table

    pair = Table("pair", MetaData(), Column("a", Integer, primary_key=True), Column("b", Integer, primary_key=True))
    with pytest.raises(InvalidService, match="one column"):
        ResourceManager(bank.engine, tables={"pair": pair})


CRASHER = """
import sys
from sqlalchemy import create_engine
from tests.integration.fix_two_phase import manager_of, prepared_manager, withdraw
kind, url, call, t = sys.argv[1:]
engine = create_engine(url)
if kind == "resources":
    manager = manager_of(engine)
    prepare = lambda: manager.prepare(t, "ada", "update", {"amount": -3}, resource="money")
else:
    manager = prepared_manager(engine)
    prepare = lambda: manager.prepare(t, withdraw("ada", 3))
prepare() if call == "prepare" else getattr(manager, call)(t)
"""


def crash(engine: Engine, kind: str, call: str, line: str, t: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHER, kind, engine.url.render_as_string(hide_password=False), call, t],
        env={**os.environ, "FLUXORA_CRASH_AT": f"participant.{call}.{line}"},
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert done.returncode == 137


@pytest.mark.parametrize("line", ["before_commit", "after_commit"])
@pytest.mark.parametrize("call", ["prepare", "commit", "abort"])
def test_a_process_that_dies_at_any_line_leaves_all_of_the_call_or_nothing(bank: Bank, call: str, line: str) -> None:
    bank.open(ada=10)
    t = new()
    if call != "prepare":
        assert bank.manager.prepare(t, "ada", "update", {"amount": -3}, resource="money")
    crash(bank.engine, "resources", call, line, t)
    done = line == "after_commit"
    before = None if call == "prepare" else "PREPARED"
    after = {"prepare": "PREPARED", "commit": "COMMITTED", "abort": "ABORTED"}[call]
    assert bank.state(t) == (after if done else before)
    # Whoever comes next, knowing nothing but the table, brings it to its end.
    if call == "prepare":
        assert bank.manager.prepare(t, "ada", "update", {"amount": -3}, resource="money")
        bank.manager.commit(t)
    else:
        getattr(bank.manager, call)(t)
    assert bank.balances() == {"ada": 10 if call == "abort" else 7}
    assert bank.held() == set()


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["prepare", "prepare", "commit", "abort", "lost prepare", "lost commit", "lost abort"]),
        st.integers(0, 2),
        st.sampled_from(["ada", "bob", "nobody"]),
    ),
    max_size=14,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CALLS)
def test_any_order_of_calls_and_crashes_does_what_the_model_says(bank: Bank, calls: list[tuple[str, int, str]]) -> None:
    """Three transactions that each take 1 from an account; a "lost" call is rolled back by a crash at its end."""
    bank.sql("TRUNCATE accounts, fluxora.held, fluxora.prepared")
    bank.open(ada=5, bob=5)
    ids = [new() for _ in range(3)]
    states: dict[int, str] = {}
    content: dict[int, set[str]] = {}
    balances = {"ada": 5, "bob": 5}
    for call, number, account in calls:
        t = ids[number]
        if call.startswith("lost"):
            with bank.engine.connect() as connection:
                try:
                    if call == "lost prepare":
                        bank.manager.prepare(
                            t, account, "update", {"amount": -1}, resource="money", connection=connection
                        )
                    else:
                        getattr(bank.manager, call.split()[1])(t, connection=connection)
                except (TransactionEnded, UnknownTransaction):
                    pass
                connection.rollback()
            continue
        state, mine = states.get(number), content.setdefault(number, set())
        if call == "prepare":
            others = {
                a for n, accounts in content.items() if n != number and states.get(n) == "PREPARED" for a in accounts
            }
            if state in (None, "PREPARED"):
                expected = account in mine or (account in balances and account not in others)
                if expected:
                    mine.add(account)
                if state is None:
                    states[number] = "PREPARED" if expected else "ABORTED"
            else:
                expected = state == "COMMITTED" and account in mine
            vote = bank.manager.prepare(t, account, "update", {"amount": -1}, resource="money")
            assert bool(vote) == expected, vote
        elif call == "commit":
            error = {None: UnknownTransaction, "ABORTED": TransactionEnded}.get(state)
            if error is not None:
                with pytest.raises(error):
                    bank.manager.commit(t)
            else:
                bank.manager.commit(t)
                if state == "PREPARED":
                    states[number] = "COMMITTED"
                    for one in mine:
                        balances[one] -= 1
        elif state == "COMMITTED":
            with pytest.raises(TransactionEnded):
                bank.manager.abort(t)
        else:
            bank.manager.abort(t)
            states[number] = "ABORTED"
        assert bank.balances() == balances
        assert bank.held() == {
            ("money", a, ids[n]) for n, accounts in content.items() if states.get(n) == "PREPARED" for a in accounts
        }


def test_the_migration_makes_what_the_tables_say(bank: Bank) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from participant.tables import SCHEMA, metadata

    with bank.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
                "include_object": lambda thing, name, kind, *rest: name != "alembic_version",
                "compare_server_default": False,
            },
        )
        assert compare_metadata(context, metadata) == []
