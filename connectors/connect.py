"""Kafka Connect over REST."""

from dataclasses import dataclass
from typing import Any, Self

import httpx
import stamina

from schemas import FluxoraError

#: Seconds for one answer. Connect forwards writes to its leader and validates the configuration at the database.
REQUEST_TIMEOUT_S = 30
#: Seconds until a Connect that starts or rebalances must have answered.
PATIENCE_S = 60


class ConnectUnavailable(FluxoraError):
    """Connect does not answer, or is starting or rebalancing. Nothing is known to have changed; ask again."""


class ConnectRefused(FluxoraError):
    """Connect says the request is wrong; asking again does not help."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A connector or one of its tasks that has stopped with an error."""

    connector: str
    #: None: the connector itself
    task: int | None
    #: the stack trace of the worker
    trace: str

    @property
    def summary(self) -> str:
        """The innermost cause, in one line."""
        lines = [line for line in self.trace.splitlines() if line and not line.startswith("\t")]
        return lines[-1].removeprefix("Caused by: ") if lines else "no trace"


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector as Connect sees it."""

    name: str
    config: dict[str, str]
    #: RUNNING, PAUSED, STOPPED, UNASSIGNED or FAILED
    state: str
    #: by task id; empty while the connector has none yet
    tasks: dict[int, str]
    failures: tuple[Failure, ...]

    @property
    def running(self) -> bool:
        return self.state == "RUNNING" and bool(self.tasks) and all(s == "RUNNING" for s in self.tasks.values())


class Connect:
    """A client. Every call waits out a Connect that starts or rebalances, up to ``patience_s``."""

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._client = httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S)
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def close(self) -> None:
        self._client.close()

    def config(self, name: str) -> dict[str, str] | None:
        """Return the connector's configuration, None if there is no such connector."""
        answer = self._ask("GET", f"/connectors/{name}/config", missing_ok=True)
        return None if answer is None else dict(answer)

    def put(self, name: str, config: dict[str, str]) -> bool:
        """Make the connector's configuration ``config``; False if it was so already.

        An equal configuration is not sent: Connect would restart the task for it.
        """
        if self.config(name) == {**config, "name": name}:
            return False
        self._ask("PUT", f"/connectors/{name}/config", json=config)
        return True

    def connectors(self, prefix: str = "") -> dict[str, Connector]:
        """Return the connectors whose names start with ``prefix``, with configuration and status."""
        answer = self._ask("GET", "/connectors", params={"expand": ["status", "info"]})
        return {
            name: _connector(name, found["info"]["config"], found["status"])
            for name, found in answer.items()
            if name.startswith(prefix) and "info" in found and "status" in found
        }

    def restart_failed(self, name: str) -> None:
        """Restart what has failed of a connector, and only that (KIP-745)."""
        self._ask("POST", f"/connectors/{name}/restart", params={"includeTasks": "true", "onlyFailed": "true"})

    def delete(self, name: str) -> None:
        """Remove a connector; its slot stays, and so do its offsets."""
        self._ask("DELETE", f"/connectors/{name}", missing_ok=True)

    def await_running(self, name: str) -> Connector:
        """Wait until the connector and its task run.

        Raises:
            ConnectRefused: it has failed; the message is the innermost cause.
            ConnectUnavailable: it is not running in time.
        """
        for attempt in stamina.retry_context(
            on=ConnectUnavailable, attempts=None, timeout=self._patience_s, wait_initial=0.1, wait_max=0.5
        ):
            with attempt:
                found = self.connectors(name).get(name)
                if found is None:
                    raise ConnectUnavailable(f"Connect has no connector {name} yet")
                if found.failures:
                    raise ConnectRefused(f"{name} has failed: {found.failures[0].summary}")
                if not found.running:
                    raise ConnectUnavailable(f"{name} is {found.state}, its tasks {found.tasks or 'not there yet'}")
                return found
        raise AssertionError  # the loop above returns or raises

    def _ask(self, method: str, path: str, *, missing_ok: bool = False, **request: Any) -> Any:
        for attempt in stamina.retry_context(
            on=ConnectUnavailable, attempts=None, timeout=self._patience_s, wait_initial=0.1, wait_max=1
        ):
            with attempt:
                return self._once(method, path, missing_ok, request)
        raise AssertionError  # the loop above returns or raises

    def _once(self, method: str, path: str, missing_ok: bool, request: dict[str, Any]) -> Any:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ConnectUnavailable(f"Connect at {self._client.base_url} does not answer: {error!r}") from error
        if response.is_success:
            return response.json() if response.content else None
        problem = _problem(response)
        if response.status_code == 404:
            # While it starts, Connect answers 404 to everything, as HTML; a connector that is missing is told as JSON.
            if (
                missing_ok
                and "not found" in problem.lower()
                and response.headers.get("content-type", "").startswith("application/json")
            ):
                return None
            raise ConnectUnavailable(f"{method} {path}: {problem}")
        if response.status_code in (409, 429) or response.status_code >= 500:
            raise ConnectUnavailable(f"{method} {path}: {problem}")
        raise ConnectRefused(f"{method} {path}: {problem}")


def _problem(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _connector(name: str, config: dict[str, str], status: dict[str, Any]) -> Connector:
    failures = []
    if status["connector"]["state"] == "FAILED":
        failures.append(Failure(name, None, status["connector"].get("trace", "")))
    failures += [
        Failure(name, task["id"], task.get("trace", "")) for task in status["tasks"] if task["state"] == "FAILED"
    ]
    return Connector(
        name=name,
        config=config,
        state=status["connector"]["state"],
        tasks={task["id"]: task["state"] for task in status["tasks"]},
        failures=tuple(failures),
    )
