"""What a service registers for two-phase commits, and what a payload may say."""

import uuid
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from participant import InvalidChange, InvalidService, ResourceManager, Service
from participant.changes import CHANGES_LIMIT, DATA_LIMIT, Resource, changes_from, operations_of
from participant.two_phase import (
    ParticipantCommand,
    StillBusy,
    TwoPhaseOperation,
    TwoPhaseOutcome,
    Vote,
    checked_id,
    perform,
)

RESOURCES = {"account": Resource(apply=lambda connection, change: None)}


def nothing(*anything: Any) -> None:
    return None


def test_the_three_handlers_belong_together() -> None:
    service = Service("bank")
    service.prepare(nothing)
    service.commit(nothing)
    with pytest.raises(InvalidService, match="one is missing"):
        service.check()
    service.abort(nothing)
    service.check()
    service.participant(ResourceManager(service="bank"))
    with pytest.raises(InvalidService, match="only one of them"):
        service.check()


def test_a_service_may_take_part_in_two_phase_commits_alone() -> None:
    service = Service("bank")
    with pytest.raises(InvalidService, match="no action"):
        service.check()
    service.participant(ResourceManager(service="bank"))
    service.check()
    with pytest.raises(InvalidService, match="already"):
        service.participant(ResourceManager(service="bank"))


def test_a_prepare_that_meets_a_copy_of_itself_has_failed_and_is_no_vote() -> None:
    """REFUSED would say that nothing is held, and the coordinator would not tell us to abort."""

    class Busy(ResourceManager):
        def prepare_payload(self, transaction_id: str, *rest: Any, **more: Any) -> Vote:
            raise StillBusy(transaction_id)

    command = ParticipantCommand("c", uuid.uuid4(), "bank", TwoPhaseOperation.PREPARE, 1, {})
    answer = perform(Busy(service="bank"), cast(Connection, None), command)
    assert answer.outcome is TwoPhaseOutcome.FAILED


def test_a_payload_is_one_operation_several_or_none() -> None:
    one = {"resource_id": "a", "operation": "delete"}
    assert operations_of({}) == []
    assert operations_of(one) == [one]
    assert operations_of({"operations": [one, one]}) == [one, one]
    with pytest.raises(InvalidChange, match="list of objects"):
        operations_of({"operations": [7]})


def test_the_only_resource_need_not_be_named_and_an_integer_is_an_id() -> None:
    (change,) = changes_from("t", [{"resource_id": 7, "operation": "create", "data": {"a": 1}}], RESOURCES)
    assert (change.resource, change.resource_id, change.data) == ("account", "7", {"a": 1})


def test_a_transaction_has_limits() -> None:
    many = [{"resource_id": n, "operation": "delete"} for n in range(CHANGES_LIMIT + 1)]
    assert len(changes_from("t", many[:-1], RESOURCES)) == CHANGES_LIMIT
    with pytest.raises(InvalidChange, match=f"at most {CHANGES_LIMIT}"):
        changes_from("t", many, RESOURCES)
    with pytest.raises(InvalidChange, match="bytes of JSON"):
        changes_from("t", [{"resource_id": 1, "operation": "create", "data": "x" * DATA_LIMIT}], RESOURCES)


def test_an_id_is_kept_as_it_is_unless_it_is_a_uuid() -> None:
    assert checked_id("Transfer-7") == "Transfer-7"
    assert checked_id("0193A7B4-0000-7000-8000-000000000001") == "0193a7b4-0000-7000-8000-000000000001"
