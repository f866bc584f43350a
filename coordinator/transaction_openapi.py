"""The part of ``/transactions`` in the OpenAPI document: examples of problems, and the answer to who does not wait."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from coordinator.transaction_models import Accepted, ParticipantRequest, TransactionRequest, VerbRequest
from web import openapi

_EXAMPLES: Mapping[int, Mapping[str, Any]] = {
    **openapi.EXAMPLES,
    404: {"slug": "not-found", "detail": "There is no transaction 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e."},
    409: {
        "slug": "conflict",
        "detail": "COMMIT is not possible: the transaction is ABORTING",
        "state": "ABORTING",
    },
    413: {
        "slug": "too-large",
        "detail": "participants[0].payload is 300000 bytes; at most 262144 may be.",
        "errors": [{"field": "participants[0].payload", "rule": "is at most 262144 bytes as JSON"}],
    },
    422: {
        "slug": "malformed",
        "detail": "service_url: the host is not on the allow-list",
        "errors": [{"field": "service_url", "rule": "the host is not on the allow-list"}],
    },
}

answers = partial(openapi.answers, _EXAMPLES)

#: Bodies that routes read themselves.
REQUESTS = (TransactionRequest, ParticipantRequest, VerbRequest)


def accepted() -> dict[int | str, dict[str, Any]]:
    """The response 202 of such a route."""
    return answers(Accepted, 202, headers=("Location", "Preference-Applied"))
