"""A saga drawn over time: what each step did, how long its answers took and what it waited for. Pure.

Made from two documents of the coordinator: the saga, and its history (the journal). Times are seconds since the
saga's first input, by the log's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

_ENDED = ("COMPLETED", "FAILED")


class Work(StrEnum):
    """What a step is busy with; the values draw it."""

    ACTION = "━"
    COMPENSATION = "◂"
    #: For the next attempt.
    WAIT = "·"


class Tone(StrEnum):
    """How a moment is to be read; the values are styles of rich."""

    PLAIN = ""
    GOOD = "green"
    BAD = "red"
    TURN = "yellow"
    FAINT = "dim"


@dataclass(frozen=True, slots=True)
class Span:
    work: Work
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Moment:
    at: float
    #: None: it concerns the whole saga.
    step: str | None
    what: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Timeline:
    moments: Sequence[Moment]
    #: Of each step, in the order of the definition.
    spans: Mapping[str, Sequence[Span]]
    #: From the first input to the end, or to the last that is known.
    seconds: float

    def bar(self, step: str, width: int) -> str:
        """The step's spans over the whole time, in ``width`` characters; what is short still shows."""
        cells = [" "] * width
        scale = width / self.seconds if self.seconds > 0 else 0.0
        for span in self.spans[step]:
            first = min(int(span.begin * scale), width - 1)
            last = min(max(first + 1, round(span.end * scale)), width)
            for i in range(first, last):
                # A wait never hides an attempt.
                if span.work is not Work.WAIT or cells[i] == " ":
                    cells[i] = span.work.value
        return "".join(cells)


@dataclass(slots=True)
class _Attempt:
    work: Work
    number: int
    sent: float


@dataclass(slots=True)
class _Step:
    timeout_seconds: float
    attempt: _Attempt | None = None
    waits_since: float | None = None
    spans: list[Span] = field(default_factory=list)


def timeline(saga: Mapping[str, Any], history: Sequence[Mapping[str, Any]], now: datetime) -> Timeline:
    """Draw ``saga`` from its whole ``history``; ``now`` ends what is still under way."""
    first = history[0]["at"] if history else saga["created_at"]
    drawing = _Drawing(saga, datetime.fromisoformat(first))
    for entry in history:
        drawing.entry(entry)
    end = datetime.fromisoformat(history[-1]["at"]) if history and saga["state"] in _ENDED else now
    return drawing.finished(end)


class _Drawing:
    def __init__(self, saga: Mapping[str, Any], start: datetime) -> None:
        self._start = start
        self._steps = {step["id"]: _Step(step["timeout_seconds"]) for step in saga["steps"]}
        self._addresses = {step["id"]: _address(step) for step in saga["steps"]}
        self._moments: list[Moment] = []

    def entry(self, entry: Mapping[str, Any]) -> None:
        at = (datetime.fromisoformat(entry["at"]) - self._start).total_seconds()
        told = entry["input"] or {}
        match entry["type"].removeprefix("fluxora."):
            case "SagaStarted":
                self._say(at, None, "started")
            case "StepReplied":
                self._reply(at, told, entry)
            case "DeadlinePassed":
                self._timeouts(at)
            case "RequestMade":
                self._request(at, told, entry)
            case other:
                self._say(at, None, f"{other}: {entry['verdict']}{_because(entry['reason'])}", Tone.FAINT)
        for effect in entry["effects"]:
            if "send" in effect:
                self._sent(at, effect)
            elif "publish" in effect:
                self._published(at, effect)

    def finished(self, end: datetime) -> Timeline:
        seconds = max(
            (end - self._start).total_seconds(),
            max((moment.at for moment in self._moments), default=0.0),
        )
        for step in self._steps.values():
            self._close(step, seconds)
            self._end_wait(step, seconds)
        return Timeline(self._moments, {name: step.spans for name, step in self._steps.items()}, seconds)

    # Inputs

    def _reply(self, at: float, told: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        name = told["step"]
        step = self._steps.get(name)
        if step is None or entry["verdict"] != "APPLIED":
            self._say(
                at,
                name,
                f"answer to {told['operation'].lower()} {told['attempt']} {entry['verdict'].lower()}"
                f"{_because(entry['reason'])}",
                Tone.FAINT,
            )
            return
        took = "" if step.attempt is None else f" after {duration(at - step.attempt.sent)}"
        self._close(step, at)
        self._end_wait(step, at)
        if told["outcome"] == "DONE":
            done = "executed" if told["operation"] == "ACTION" else "compensated"
            result = "" if told.get("result") is None else f"  {_short(told['result'])}"
            self._say(at, name, f"{done}{took}{result}", Tone.GOOD)
        else:
            outcome = {"REFUSED": "refused", "FAILED": "failed", "UNKNOWN": "no clear answer"}[told["outcome"]]
            self._say(at, name, f"{outcome}{took}{_because(told.get('reason'))}", Tone.BAD)
            step.waits_since = at

    def _timeouts(self, at: float) -> None:
        """The input does not say whose timer it was; an attempt that has had its time was answered by none."""
        for name, step in self._steps.items():
            # A millisecond of grace: the journal's times are whole ones.
            if step.attempt is not None and at + 0.001 >= step.attempt.sent + step.timeout_seconds:
                what = "compensation" if step.attempt.work is Work.COMPENSATION else "action"
                self._say(
                    at,
                    name,
                    f"no answer to {what} {step.attempt.number} in {duration(at - step.attempt.sent)}",
                    Tone.BAD,
                )
                self._close(step, at)
                step.waits_since = at

    def _request(self, at: float, told: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        asked = f"{told['request'].lower()} asked for by {told.get('who') or 'unknown'}"
        if told.get("why"):
            asked += f" ({told['why']})"
        granted = entry["verdict"] == "APPLIED"
        verdict = "" if granted else f": {entry['verdict'].lower()}{_because(entry['reason'])}"
        self._say(at, told.get("step"), asked + verdict, Tone.TURN if granted else Tone.FAINT)

    # Effects

    def _sent(self, at: float, effect: Mapping[str, Any]) -> None:
        name, number = effect["step"], effect["attempt"]
        step = self._steps[name]
        self._close(step, at)
        waited = "" if step.waits_since is None else f" after a wait of {duration(at - step.waits_since)}"
        self._end_wait(step, at)
        action = effect["send"] == "ACTION"
        step.attempt = _Attempt(Work.ACTION if action else Work.COMPENSATION, number, at)
        what = "action" if action else "compensation"
        self._say(at, name, f"{what} {number} → {self._addresses[name][0 if action else 1]}{waited}")

    def _published(self, at: float, effect: Mapping[str, Any]) -> None:
        why = _because(effect.get("reason"))
        match effect["publish"]:
            case "SagaCompensating":
                self._say(at, None, f"turns round{why}", Tone.TURN)
            case "SagaCompleted":
                self._say(at, None, "COMPLETED", Tone.GOOD)
            case "SagaFailed":
                self._say(at, None, f"FAILED, everything is undone{why}", Tone.BAD)
            case "SagaNeedsAttention":
                self._say(at, effect.get("step"), f"needs attention{why}", Tone.TURN)
            case "StepFailed" | "StepExecuted" | "StepCompensated" as end:
                # The answer of this moment has told it already; a skip, or giving up a wait, comes without one.
                step = self._steps[effect["step"]]
                if end == "StepFailed" and step.waits_since != at:
                    self._say(at, effect["step"], f"given up{why}", Tone.BAD)
                self._close(step, at)
                self._end_wait(step, at)

    # Bookkeeping

    def _say(self, at: float, step: str | None, what: str, tone: Tone = Tone.PLAIN) -> None:
        self._moments.append(Moment(at, step, what, tone))

    def _close(self, step: _Step, at: float) -> None:
        if step.attempt is not None:
            step.spans.append(Span(step.attempt.work, step.attempt.sent, at))
            step.attempt = None

    def _end_wait(self, step: _Step, at: float) -> None:
        if step.waits_since is not None:
            if at > step.waits_since:
                step.spans.append(Span(Work.WAIT, step.waits_since, at))
            step.waits_since = None


def duration(seconds: float) -> str:
    """For people: 12 ms, 3.42 s, 2 m 05 s, 7 h 30 m, 12 d 4 h."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 99.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _address(step: Mapping[str, Any]) -> tuple[str, str]:
    """Whom the action goes to, and whom the compensation."""
    service = step["service_name"]
    endpoints = step.get("action_endpoint"), step.get("compensation_endpoint")
    if endpoints[0] is None:
        return service, service
    return tuple(service if e is None else f"{service} {e}" for e in endpoints)  # type: ignore[return-value]


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
