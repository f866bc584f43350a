"""The coordinator's part of its OpenAPI document: examples of problems, and the body that a route reads itself."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from coordinator.models import CancelRequest, DefinitionRequest, RetryNowRequest, SagaRequest, SkipRequest
from web import openapi

_EXAMPLES: Mapping[int, Mapping[str, Any]] = {
    **openapi.EXAMPLES,
    404: {"slug": "not-found", "detail": "There is no saga 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e."},
    409: {
        "slug": "conflict",
        "detail": "There is a transaction 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e already; "
        "its state is EXECUTING. Nothing was written.",
        "state": "EXECUTING",
    },
    413: {
        "slug": "too-large",
        "detail": "steps[0].payload is 300000 bytes; at most 262144 may be.",
        "errors": [{"field": "steps[0].payload", "rule": "is at most 262144 bytes as JSON"}],
    },
    422: {
        "slug": "malformed",
        "detail": "steps[0].service_name: is required",
        "errors": [{"field": "steps[0].service_name", "rule": "is required"}],
    },
}

CREATE = openapi.creates(SagaRequest)
REGISTER = openapi.body(DefinitionRequest)
CANCEL = openapi.asks(CancelRequest)
RETRY = openapi.asks(RetryNowRequest)
SKIP = openapi.asks(SkipRequest)
#: Bodies that routes read themselves.
REQUESTS = (SagaRequest, DefinitionRequest, CancelRequest, RetryNowRequest, SkipRequest)
answers = partial(openapi.answers, _EXAMPLES)
