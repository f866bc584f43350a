"""The batch on a real PostgreSQL: each rule that keeps an effect to exactly once."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, text

from participant import Command, Operation, Refused, ResourceManager, Service
from participant.arrays import bytea_array, text_array, uuid_array
from participant.batch import Batch
from participant.local_transaction import Retry
from participant.settings import sqlalchemy_url
from schemas import Codec
from tests.integration.fix_participant import (
    addresses,
    codec,
    database_url,
    engine,
    migrated_url,
)

__all__ = ["addresses", "codec", "database_url", "engine", "migrated_url"]  # fixtures

ACTION, COMPENSATION = Operation.ACTION, Operation.COMPENSATION


def command(
    operation: Operation = ACTION,
    *,
    transaction: uuid.UUID | None = None,
    name: str = "bill",
    step: str | None = None,
    attempt: int = 1,
    payload: Any = None,
    final: bool = False,
    must_succeed: bool = False,
) -> Command:
    transaction = transaction or uuid.uuid4()
    step = step or name
    return Command(
        command_id=f"{transaction}:{step}:{operation}:{attempt}",
        transaction_id=transaction,
        saga_name="order",
        step=step,
        name=name,
        operation=operation,
        attempt=attempt,
        final=final,
        must_succeed=must_succeed,
        payload=payload or {},
    )


class Ledger:
    """A service whose handlers write one row an effect, and the replies it gave."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self.engine = engine
        self.codec = codec
        self.dead: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.undone_with: list[Any] = []
        self.service = Service("ledger")
        self.service.action("bill")(self.bill)
        self.service.compensation("bill")(self.unbill)
        self.service.action("bill-many", batch=True)(self.bill_many)
        self.service.compensation("bill-many", batch=True)(self.unbill_many)
        self.service.action("notify", compensates=False)(lambda connection, command: None)
        self.service.handlers.check()
        self.batch = Batch(
            engine,
            self.service.handlers,
            codec,
            service="ledger",
            participant=ResourceManager(engine, service="ledger"),
            dead_letter=lambda command, error: self.dead.append((command.command_id, repr(error))),
        )

    def bill(self, connection: Connection, command: Command) -> dict[str, Any] | Refused | None:
        self.calls.append(command.command_id)
        what = command.payload.get("do")
        if what == "refuse":
            return Refused("no credit")
        self.write(connection, [command], 1)
        if what == "refuse after writing":
            return Refused("no credit, too late")
        if what == "raise":
            raise ValueError("broken \x00 handler")
        if what == "commit":
            connection.commit()
        if what == "commit, quietly":
            with contextlib.suppress(Exception):
                connection.commit()
        if what == "roll back":
            connection.rollback()
        if what == "swallow":
            try:
                connection.execute(text("SELECT 1/0"))
            except Exception:
                return {"fine": False}
        if what == "return rubbish":
            return {"set": {1, 2}}
        if what == "break the commit":
            connection.execute(
                text("INSERT INTO child (parent) VALUES (:parent)"), {"parent": str(command.transaction_id)}
            )
        return {"amount": command.payload.get("amount", 1)}

    def unbill(self, connection: Connection, command: Command) -> None:
        self.undone_with.append(command.result)
        self.write(connection, [command], -1)

    def bill_many(self, connection: Connection, commands: list[Command]) -> list[dict[str, int] | Refused]:
        self.calls += [f"[{len(commands)}]"]
        self.write(connection, commands, 1)
        if any(c.payload.get("do") == "raise" for c in commands):
            raise ValueError("one of them")
        return [Refused("no") if c.payload.get("do") == "refuse" else {"n": 1} for c in commands]

    def unbill_many(self, connection: Connection, commands: list[Command]) -> list[None]:
        self.write(connection, commands, -1)
        return [None] * len(commands)

    def write(self, connection: Connection, commands: Sequence[Command], sign: int) -> None:
        connection.execute(
            text("INSERT INTO effect (transaction_id, step, sign) VALUES (:t, :s, :n)"),
            [{"t": c.transaction_id, "s": c.step, "n": sign} for c in commands],
        )

    def effects(self, transaction: uuid.UUID) -> list[int]:
        with self.engine.connect() as connection:
            return list(
                connection.execute(
                    text("SELECT sign FROM effect WHERE transaction_id = :t ORDER BY id"), {"t": transaction}
                ).scalars()
            )

    def replies(self, transaction: uuid.UUID) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT payload FROM fluxora.outbox WHERE aggregateid = :t ORDER BY id"), {"t": str(transaction)}
            ).scalars()
            return [self.codec.decode(bytes(row))[1] for row in rows]

    def outcomes(self, transaction: uuid.UUID) -> list[str]:
        return [reply["outcome"] for reply in self.replies(transaction)]


@pytest.fixture
def ledger(engine: Engine, codec: Codec) -> Ledger:
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE IF NOT EXISTS effect (id serial PRIMARY KEY, transaction_id uuid, step text, sign int);"
                "CREATE TABLE IF NOT EXISTS parent (id text PRIMARY KEY);"
                "CREATE TABLE IF NOT EXISTS child (parent text REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    return Ledger(engine, codec)


@pytest.fixture
def second(migrated_url: str, codec: Codec, ledger: Ledger) -> Iterator[Ledger]:
    """Another worker of the same service."""
    engine = create_engine(sqlalchemy_url(migrated_url))
    yield Ledger(engine, codec)
    engine.dispose()


def test_an_action_runs_once_however_often_its_command_comes(ledger: Ledger) -> None:
    bill = command(payload={"amount": 7})
    ledger.batch.handle([bill, bill])
    ledger.batch.handle([bill])
    assert ledger.effects(bill.transaction_id) == [1]
    (reply,) = ledger.replies(bill.transaction_id)
    assert (reply["outcome"], reply["result"], reply["command_id"]) == ("DONE", '{"amount":7}', bill.command_id)


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_array_literals_mean_what_they_hold(engine: Engine, values: list[str | None]) -> None:
    blobs = [(value or "").encode() for value in values]
    ids = [uuid.uuid5(uuid.NAMESPACE_URL, value or "") for value in values]
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT CAST(:t AS text[]), CAST(:b AS bytea[]), CAST(:u AS uuid[])"),
            {"t": text_array(values), "b": bytea_array(blobs), "u": uuid_array(ids)},
        ).one()
    assert list(row) == [values, blobs, ids]


def test_a_second_attempt_of_an_action_that_ran_gets_its_stored_answer(ledger: Ledger) -> None:
    first = command(payload={"amount": 7})
    again = command(transaction=first.transaction_id, attempt=2, payload={"amount": 7})
    ledger.batch.handle([first])
    ledger.batch.handle([again])
    assert ledger.effects(first.transaction_id) == [1]
    assert [r["result"] for r in ledger.replies(first.transaction_id)] == ['{"amount":7}'] * 2


def test_a_failed_action_may_run_again_with_its_next_attempt(ledger: Ledger) -> None:
    first = command(payload={"do": "raise"})
    ledger.batch.handle([first])
    assert ledger.effects(first.transaction_id) == []
    ledger.batch.handle([command(transaction=first.transaction_id, attempt=2)])
    assert ledger.effects(first.transaction_id) == [1]
    failed, done = ledger.replies(first.transaction_id)
    assert failed["outcome"] == "FAILED"
    assert failed["reason"] == "ValueError: broken \\0 handler"
    assert done["outcome"] == "DONE"
    assert ledger.dead == []


def test_the_last_attempt_that_fails_is_dead_lettered_once(ledger: Ledger) -> None:
    last = command(payload={"do": "raise"}, final=True)
    ledger.batch.handle([last])
    ledger.batch.handle([last])
    assert [dead[0] for dead in ledger.dead] == [last.command_id]
    assert ledger.outcomes(last.transaction_id) == ["FAILED"]


def test_a_compensation_undoes_an_action_that_ran_once(ledger: Ledger) -> None:
    bill = command()
    undo = command(COMPENSATION, transaction=bill.transaction_id)
    ledger.batch.handle([bill, undo])  # in one batch
    ledger.batch.handle([command(COMPENSATION, transaction=bill.transaction_id, attempt=2)])
    assert ledger.effects(bill.transaction_id) == [1, -1]
    assert ledger.outcomes(bill.transaction_id) == ["DONE", "DONE", "DONE"]


def test_a_compensation_gets_the_result_even_if_the_machine_never_had_it(ledger: Ledger) -> None:
    """The reply came too late for the machine: its command carries no result, but the barrier has it."""
    bill = command(payload={"amount": 7})
    ledger.batch.handle([bill, command(COMPENSATION, transaction=bill.transaction_id)])
    assert ledger.undone_with == [{"amount": 7}]


@pytest.mark.parametrize("together", [True, False])
def test_an_action_after_its_compensation_is_refused(ledger: Ledger, together: bool) -> None:
    bill = command()
    undo = command(COMPENSATION, transaction=bill.transaction_id)
    for batch in [[undo, bill]] if together else [[undo], [bill]]:
        ledger.batch.handle(batch)
    assert ledger.effects(bill.transaction_id) == []
    undone, refused = ledger.replies(bill.transaction_id)
    assert undone["outcome"] == "DONE"
    assert (refused["outcome"], refused["reason"]) == ("REFUSED", "compensated before it arrived")


def test_the_compensation_of_a_refused_action_has_nothing_to_undo(ledger: Ledger) -> None:
    bill = command(payload={"do": "refuse"})
    ledger.batch.handle([bill])
    ledger.batch.handle([command(COMPENSATION, transaction=bill.transaction_id)])
    assert ledger.effects(bill.transaction_id) == []
    assert ledger.outcomes(bill.transaction_id) == ["REFUSED", "DONE"]


@pytest.mark.parametrize("must_succeed", [False, True])
def test_a_refusal_is_remembered_unless_the_step_must_succeed(ledger: Ledger, must_succeed: bool) -> None:
    first = command(payload={"do": "refuse"}, must_succeed=must_succeed)
    again = command(transaction=first.transaction_id, attempt=2, must_succeed=must_succeed)
    ledger.batch.handle([first])
    ledger.batch.handle([again])
    assert ledger.outcomes(first.transaction_id) == ["REFUSED", "DONE" if must_succeed else "REFUSED"]
    assert ledger.effects(first.transaction_id) == ([1] if must_succeed else [])


def test_an_action_without_compensation_is_compensated_by_saying_so(ledger: Ledger) -> None:
    notify = command(name="notify")
    ledger.batch.handle([notify])
    ledger.batch.handle([command(COMPENSATION, transaction=notify.transaction_id, name="notify")])
    assert ledger.outcomes(notify.transaction_id) == ["DONE", "DONE"]


def test_a_refusal_keeps_no_rows_and_costs_the_others_nothing(ledger: Ledger) -> None:
    odd = {3: "refuse after writing", 5: "refuse", 8: "refuse after writing"}
    commands = [command(payload={"do": odd.get(i)}) for i in range(12)]
    ledger.batch.handle(commands)
    for i, one in enumerate(commands):
        assert ledger.effects(one.transaction_id) == ([] if i in odd else [1])
        assert ledger.outcomes(one.transaction_id) == (["REFUSED"] if i in odd else ["DONE"])
    assert max(ledger.calls.count(one.command_id) for one in commands) <= 2


@pytest.mark.parametrize(
    "fault", ["raise", "commit", "commit, quietly", "roll back", "swallow", "return rubbish", "break the commit"]
)
def test_whatever_a_handler_does_wrong_hits_its_own_command_alone(ledger: Ledger, fault: str) -> None:
    commands = [command(payload={"do": fault if i == 4 else None}) for i in range(9)]
    ledger.batch.handle(commands)
    for i, one in enumerate(commands):
        assert ledger.effects(one.transaction_id) == ([] if i == 4 else [1]), i
        assert ledger.outcomes(one.transaction_id) == (["FAILED"] if i == 4 else ["DONE"])


def test_a_batch_handler_gets_all_at_once(ledger: Ledger) -> None:
    commands = [command(name="bill-many") for _ in range(20)]
    ledger.batch.handle(commands)
    assert ledger.calls == ["[20]"]
    assert all(ledger.effects(one.transaction_id) == [1] for one in commands)


def test_a_batch_handler_that_raises_is_cut_down_to_the_culprit(ledger: Ledger) -> None:
    commands = [command(name="bill-many", payload={"do": "raise" if i == 11 else None}) for i in range(16)]
    ledger.batch.handle(commands)
    for i, one in enumerate(commands):
        assert ledger.effects(one.transaction_id) == ([] if i == 11 else [1])
        assert ledger.outcomes(one.transaction_id) == (["FAILED"] if i == 11 else ["DONE"])


def test_a_batch_handler_that_writes_for_those_it_refuses_leaves_none_of_their_rows(ledger: Ledger) -> None:
    commands = [command(name="bill-many", payload={"do": "refuse" if i % 3 == 0 else None}) for i in range(10)]
    ledger.batch.handle(commands)
    for i, one in enumerate(commands):
        assert ledger.effects(one.transaction_id) == ([] if i % 3 == 0 else [1])
        assert ledger.outcomes(one.transaction_id) == (["REFUSED"] if i % 3 == 0 else ["DONE"])


def test_an_unknown_command_is_refused_by_naming_those_there_are(ledger: Ledger) -> None:
    odd = command(name="bil")
    ledger.batch.handle([odd])
    (reply,) = ledger.replies(odd.transaction_id)
    assert reply["outcome"] == "REFUSED"
    assert reply["reason"] == "there is no action 'bil' here; there are: bill, bill-many, notify"


def test_a_zombie_with_the_same_batch_changes_nothing(ledger: Ledger, second: Ledger) -> None:
    commands = [command() for _ in range(50)]
    both = [
        threading.Thread(target=ledger.batch.handle, args=(commands,)),
        threading.Thread(target=second.batch.handle, args=(list(reversed(commands)),)),
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=30)
    for one in commands:
        assert ledger.effects(one.transaction_id) == [1]
        assert ledger.outcomes(one.transaction_id) == ["DONE"]


@pytest.mark.parametrize("rival", ["second attempt", "compensation"])
def test_a_rival_that_commits_first_rolls_the_batch_back_whole(ledger: Ledger, second: Ledger, rival: str) -> None:
    """The action runs here while another worker commits a rival of the same step: only one of them may stand."""
    bill = command()
    other = (
        command(transaction=bill.transaction_id, attempt=2)
        if rival == "second attempt"
        else command(COMPENSATION, transaction=bill.transaction_id)
    )
    bystander = command()
    meanwhile: list[Callable[[], None]] = [lambda: second.batch.handle([other])]

    @ledger.service.action("slow", compensates=False)
    def slow(connection: Connection, command: Command) -> None:
        if meanwhile:
            meanwhile.pop()()

    batch = [bystander, bill, command(name="slow")]
    with pytest.raises(Retry, match="another worker"):
        ledger.batch.handle(batch)
    assert ledger.effects(bystander.transaction_id) == []
    ledger.batch.handle(batch)
    assert ledger.effects(bystander.transaction_id) == [1]
    assert ledger.effects(bill.transaction_id) == ([1] if rival == "second attempt" else [])
    assert ledger.outcomes(bill.transaction_id) == (
        ["DONE", "DONE"] if rival == "second attempt" else ["DONE", "REFUSED"]
    )


def test_a_lost_connection_is_no_handlers_fault(ledger: Ledger, second: Ledger) -> None:
    bill = command(final=True)
    cut = [True]

    @ledger.service.action("cut", compensates=False)
    def cut_off(connection: Connection, command: Command) -> None:
        if cut:
            cut.clear()
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with second.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(text("SELECT 1"))

    batch = [bill, command(name="cut", final=True)]
    with pytest.raises(Retry):
        ledger.batch.handle(batch)
    ledger.batch.handle(batch)
    assert ledger.effects(bill.transaction_id) == [1]
    assert ledger.outcomes(batch[1].transaction_id) == ["DONE"]
    assert ledger.dead == []


Delivery = tuple[int, str, Operation, int, str | None]
deliveries = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["bill", "bill-many"]),
            st.sampled_from([ACTION, ACTION, COMPENSATION]),
            st.integers(1, 2),
            st.sampled_from([None, None, "refuse", "refuse after writing", "raise"]),
        ),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries)
def test_any_order_of_any_deliveries_leaves_every_step_done_undone_or_untouched(
    ledger: Ledger, batches: list[list[Delivery]]
) -> None:
    """Duplicates, reorderings and repeated attempts of up to three transactions, in up to four batches."""
    ids = [uuid.uuid4() for _ in range(3)]
    seen: dict[str, Command] = {}
    for batch in batches:
        commands = []
        for number, name, operation, attempt, do in batch:
            one = command(operation, transaction=ids[number], name=name, attempt=attempt, payload={"do": do})
            commands.append(seen.setdefault(one.command_id, one))  # a redelivery is the same command
        ledger.batch.handle(commands)
    for transaction in ids:
        replies = ledger.replies(transaction)
        answered = [reply["command_id"] for reply in replies]
        assert sorted(answered) == sorted(c for c in seen if c.startswith(str(transaction)))
        for step in ("bill", "bill-many"):
            with ledger.engine.connect() as connection:
                signs = list(
                    connection.execute(
                        text("SELECT sign FROM effect WHERE transaction_id = :t AND step = :s ORDER BY id"),
                        {"t": transaction, "s": step},
                    ).scalars()
                )
            assert signs in ([], [1], [1, -1])
            mine = [reply for reply in replies if reply["step"] == step]
            undone = any(reply["operation"] == "COMPENSATION" and reply["outcome"] == "DONE" for reply in mine)
            done = any(reply["operation"] == "ACTION" and reply["outcome"] == "DONE" for reply in mine)
            assert signs == ([] if not done else [1, -1] if undone else [1])
