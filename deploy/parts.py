"""What the supervisor runs: a part, how to see that it is ready, and the order in which parts start."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

#: Answers whether the part is ready now. May raise: that is a no. Must return within a few seconds.
Probe = Callable[[], Awaitable[bool]]


class RunCommand(Protocol):
    """Runs a command to its end with its output in the part's log. Raises `StepFailed` if it fails."""

    async def __call__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None: ...


#: Work before each start of a part (make its data directory, write its configuration). Idempotent, and safe
#: to be interrupted at any point.
Preparation = Callable[[RunCommand], Awaitable[None]]


class StepFailed(Exception):
    """A command of a preparation or a one-shot part failed; its output is in the part's log."""


class PlanError(ValueError):
    """The parts cannot be ordered: an unknown requirement, a name used twice, or a circle."""


@dataclass(frozen=True)
class Part:
    """One supervised process, or with `one_shot` a list of commands that run once, in order, to their end."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Parts that must be ready (a one-shot: done) before this one starts for the first time.
    requires: tuple[str, ...] = ()
    ready: Probe | None = None
    prepare: Preparation | None = None
    #: Work when the process accepts requests and before the part counts as ready (create databases).
    complete: Callable[[], Awaitable[None]] | None = None
    one_shot: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    #: Seconds between `stop_signal` and SIGKILL where the setting is too short.
    stop_grace: float | None = None
    #: Work after a process that had been ready has ended on `stop_signal`. Must not fail.
    finish: Callable[[], None] | None = None
    #: Variable -> port: what has to be free before anything starts.
    ports: Mapping[str, int] = field(default_factory=dict)
    directory: Path | None = None


def start_order(parts: Sequence[Part]) -> list[Part]:
    """The parts, each after all that it requires, otherwise in the order given. Raises `PlanError`."""
    by_name: dict[str, Part] = {}
    for part in parts:
        if part.name in by_name:
            raise PlanError(f"two parts are named {part.name!r}")
        by_name[part.name] = part
    ordered: list[Part] = []
    placed: set[str] = set()

    def place(part: Part, path: tuple[str, ...]) -> None:
        if part.name in placed:
            return
        if part.name in path:
            raise PlanError("parts wait for each other: " + " → ".join((*path, part.name)))
        for name in part.requires:
            if name not in by_name:
                raise PlanError(f"{part.name} requires {name!r}, which is no part of this stack")
            place(by_name[name], (*path, part.name))
        placed.add(part.name)
        ordered.append(part)

    for part in parts:
        place(part, ())
    return ordered


def dependents(parts: Sequence[Part]) -> dict[str, set[str]]:
    """For each part the names of those that require it directly: they stop before it does."""
    found: dict[str, set[str]] = {part.name: set() for part in parts}
    for part in parts:
        for name in part.requires:
            found[name].add(part.name)
    return found
