"""Sagas over the coordinator's REST API."""

from typing import Any

import httpx

from schemas import FluxoraError


class SagaClientError(FluxoraError):
    """The coordinator does not answer, or says no; the message is its own."""


def list_sagas(
    url: str | None, *, name: str | None = None, state: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return sagas, the newest first."""
    params: dict[str, str | int] = {"limit": limit}
    if name is not None:
        params["name"] = name
    if state is not None:
        params["state"] = state
    return list(_get(url, "/sagas", params)["sagas"])


def show_saga(url: str | None, saga_id: str) -> dict[str, Any]:
    """Return one saga with its steps."""
    return dict(_get(url, f"/sagas/{saga_id}", {}))


def _get(url: str | None, path: str, params: dict[str, str | int]) -> Any:
    if not url:
        raise SagaClientError(
            "COORDINATOR_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it"
        )
    try:
        response = httpx.get(f"{url.rstrip('/')}{path}", params=params, timeout=30)
    except httpx.HTTPError as error:
        raise SagaClientError(f"the coordinator at {url} does not answer: {error}") from error
    if response.is_success:
        return response.json()
    try:
        problem = response.json()
        raise SagaClientError(f"{problem.get('title', response.status_code)}: {problem.get('detail', '')}")
    except ValueError:
        raise SagaClientError(f"the coordinator at {url} answered HTTP {response.status_code}") from None
