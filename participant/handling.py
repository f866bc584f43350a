"""What is being handled: the defaults of what a handler publishes, and the trace that it belongs to."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from schemas import Codec


@dataclass(frozen=True, slots=True)
class Handling:
    """A command or an event in a handler's hands."""

    #: ``ce_source`` of what the handler publishes
    service: str
    codec: Codec
    #: W3C Trace Context of the command or event; none with a batch handler, whose events have many
    traceparent: str | None


_current: ContextVar[Handling | None] = ContextVar("fluxora_handling", default=None)


def current() -> Handling | None:
    """What this thread (or task) is handling, if anything."""
    return _current.get()


@contextmanager
def handling(service: str, codec: Codec, traceparent: str | None) -> Iterator[None]:
    """Run a handler within: ``outbox.publish`` takes its defaults from here."""
    token = _current.set(Handling(service, codec, traceparent))
    try:
        yield
    finally:
        _current.reset(token)


def current_traceparent() -> str | None:
    """Return the W3C Trace Context of OpenTelemetry's current span, else that of the command or event in hand.

    OpenTelemetry is asked only where the service has imported it.
    """
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    handled = _current.get()
    return None if handled is None else handled.traceparent
