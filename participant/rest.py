"""Calls of our REST APIs, each made once however often it is sent: what the clients for services have in common.

::

    CallFailed           the call did not do what was asked; the message says why
    ├── NotFound         404  there is no such thing
    ├── Conflict         409  illegal in the state it is in, which ``state`` names
    ├── Invalid          422, 413  the request breaks a rule; ``errors`` names field and rule
    └── Unavailable      no answer, or 429, 502, 503, 504, until the time was over: it may have been done
"""

import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import orjson

from participant.json_text import NotJson, dumps
from schemas import FluxoraError

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
#: Too many requests, bad gateway, unavailable, gateway timeout: what a later try may find mended.
_PASSING = frozenset({429, 502, 503, 504})


class CallFailed(FluxoraError):
    """The call did not do what was asked.

    Attributes:
        status: of the answer; None when there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotFound(CallFailed):
    """There is no such thing."""


class Conflict(CallFailed):
    """Illegal in the state it is in; nothing was changed.

    Attributes:
        state: that state, where there is one.
    """

    def __init__(self, message: str, status: int, state: str | None) -> None:
        super().__init__(message, status)
        self.state = state


class Invalid(CallFailed):
    """The request breaks a rule; nothing was changed.

    Attributes:
        errors: (field, rule) of each.
    """

    def __init__(self, message: str, status: int, errors: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message, status)
        self.errors = errors


class Unavailable(CallFailed):
    """No answer that counts within the time. What was asked may, or may not, have been done."""


class Reply(NamedTuple):
    """The answer to a call that did what was asked."""

    status: int
    document: Any


class RestClient:
    """One connection pool to one address. Safe to share between threads; close it, or use it in a ``with``."""

    def __init__(self, base_url: str, user_agent: str, *, timeout_seconds: float, retry_seconds: float) -> None:
        """
        Args:
            timeout_seconds: of one attempt, its answer included.
            retry_seconds: from the first attempt on, how long a call that got no answer is sent again.
        """
        self._base_url = base_url.rstrip("/")
        self._timeout = timeout_seconds
        self._retry = retry_seconds
        self._http = httpx.Client(headers={"User-Agent": user_agent, "Accept": "application/json"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        key: str | None = None,
        hold_seconds: float = 0.0,
        retry_seconds: float | None = None,
    ) -> Any:
        """Make the call; returns the JSON of its answer. Arguments and errors as of :meth:`reply`."""
        return self.reply(
            method, path, body, query=query, key=key, hold_seconds=hold_seconds, retry_seconds=retry_seconds
        ).document

    def reply(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        key: str | None = None,
        hold_seconds: float = 0.0,
        retry_seconds: float | None = None,
    ) -> Reply:
        """Make the call; returns its answer.

        A call that may be sent twice must do the same as once: by its method, or by its ``key``, which goes as
        Idempotency-Key.

        Args:
            hold_seconds: how long the server is asked to keep the answer back, beside the timeout.
            retry_seconds: instead of the client's own.

        Raises:
            CallFailed: one of the tree above.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None
        if body is not None:
            content = _json(body)
            headers["Content-Type"] = "application/json"
        deadline = time.monotonic() + (self._retry if retry_seconds is None else retry_seconds)
        pause = _FIRST_PAUSE_SECONDS
        # Not stamina, which logs each retry through hooks of the whole process: a library has no business there.
        while True:
            least = 0.0
            try:
                answer = self._attempt(
                    method,
                    self._base_url + path,
                    self._timeout + hold_seconds,
                    content=content,
                    params=query,
                    headers=headers,
                )
            except httpx.UnsupportedProtocol as error:
                raise CallFailed(f"{self._base_url} is no address: {error}") from error
            except httpx.RequestError as error:
                failed = Unavailable(f"{self._base_url} does not answer: {error or type(error).__name__}")
            except httpx.InvalidURL as error:
                raise CallFailed(f"{self._base_url}{path} is no address: {error}") from error
            else:
                if answer.status not in _PASSING:
                    return _result(self._base_url, answer)
                failed = Unavailable(_told(self._base_url, answer), answer.status)
                least = _retry_after(answer)
            wait = max(pause * random.uniform(0.5, 1.0), least)
            if time.monotonic() + wait > deadline:
                raise failed
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _attempt(self, method: str, url: str, seconds: float, **request: Any) -> "_Answer":
        """One attempt, its answer read whole; raises httpx's errors.

        httpx limits the wait for each piece, and not for all of them: a body that drips would keep us for ever.
        """
        deadline = time.monotonic() + seconds
        body = bytearray()
        with self._http.stream(method, url, timeout=httpx.Timeout(self._timeout, read=seconds), **request) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer within {seconds:g} s")
        return _Answer(answer.status_code, bytes(body), answer.headers.get("retry-after"))


class _Answer(NamedTuple):
    status: int
    content: bytes
    retry_after: str | None


def _json(body: Any) -> bytes:
    try:
        return dumps(body, "body")
    except NotJson as error:
        # As the services name fields of a body.
        field = error.field.removeprefix("body.")
        raise Invalid(
            f"the request cannot be written as JSON: {field} {error.rule}", 422, ((field, error.rule),)
        ) from error


def _result(base_url: str, answer: _Answer) -> Reply:
    if 200 <= answer.status < 300:
        try:
            return Reply(answer.status, orjson.loads(answer.content))
        except orjson.JSONDecodeError as error:
            raise CallFailed(
                f"{base_url} answered HTTP {answer.status} without JSON; is it the right address?", answer.status
            ) from error
    told = _told(base_url, answer)
    match answer.status:
        case 404:
            raise NotFound(told, 404)
        case 409:
            raise Conflict(told, 409, _problem(answer).get("state"))
        case 413 | 422:
            raise Invalid(told, answer.status, _errors(answer))
        case _:
            raise CallFailed(told, answer.status)


def _problem(answer: _Answer) -> Mapping[str, Any]:
    """RFC 9457, if it is one."""
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _errors(answer: _Answer) -> tuple[tuple[str, str], ...]:
    """(field, rule) of each, as our services tell them; a proxy in between may tell something else."""
    told = _problem(answer).get("errors")
    errors = [error for error in told if isinstance(error, dict)] if isinstance(told, list) else []
    return tuple((str(error["field"]), str(error["rule"])) for error in errors if {"field", "rule"} <= error.keys())


def _told(base_url: str, answer: _Answer) -> str:
    problem = _problem(answer)
    if "detail" not in problem:
        return f"{base_url} answered HTTP {answer.status}"
    errors = [f"{field}: {rule}" for field, rule in _errors(answer)]
    # With errors, the detail tells only the first of them.
    return f"{problem.get('title', answer.status)}: {'; '.join(errors) or problem['detail']}"


def _retry_after(answer: _Answer) -> float:
    """Seconds; the form with a date is not used by our services."""
    try:
        return max(0.0, float(answer.retry_after or "0"))
    except ValueError:
        return 0.0
