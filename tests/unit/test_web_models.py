"""What every request's body has in common."""

import pytest
from pydantic import ValidationError

from coordinator.models import SagaRequest
from coordinator.transaction_models import ParticipantRequest, TransactionRequest


def test_null_for_a_field_that_may_be_left_out_is_leaving_it_out() -> None:
    nulls = TransactionRequest.model_validate_json(b'{"participants": null, "timeout_seconds": null, "metadata": null}')
    assert nulls == TransactionRequest.model_validate_json(b"{}")
    participant = b'{"service_name": "a", "payload": null, "prepare_endpoint": null, "service_url": null}'
    assert ParticipantRequest.model_validate_json(participant) == ParticipantRequest(service_name="a")


def test_null_is_a_payload_like_any_other_json_value_where_any_is_allowed() -> None:
    saga = SagaRequest.model_validate_json(
        b'{"name": "s", "steps": [{"service_name": "a", "payload": null, "kind": null}]}'
    )
    assert saga.steps is not None
    [step] = saga.steps
    assert (step.payload, step.kind) == (None, "compensatable")


@pytest.mark.parametrize("body", [b'{"service_name": null}', b'{"service_name": "a", "bogus": null}'])
def test_null_for_what_is_needed_or_not_known_is_refused(body: bytes) -> None:
    with pytest.raises(ValidationError):
        ParticipantRequest.model_validate_json(body)
