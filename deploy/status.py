"""`.run/status.json`: what the supervisor tells about its parts, for `up`, `status` and `down`."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from deploy.processes import write_atomically

#: Exit status of a supervisor that found another one in its run directory.
EXIT_ALREADY_RUNNING = 3


class StackState(StrEnum):
    #: Parts are being started for the first time.
    STARTING = "starting"
    #: Every part has been ready.
    READY = "ready"
    #: The supervisor was told to end and is stopping the parts.
    STOPPING = "stopping"
    #: All parts have been stopped.
    STOPPED = "stopped"
    #: A part did not become ready in time; everything has been stopped.
    FAILED = "failed"


class PartState(StrEnum):
    #: Waits for parts that it requires.
    WAITING = "waiting"
    #: Its process runs and is not ready yet.
    STARTING = "starting"
    #: Accepts requests.
    READY = "ready"
    #: Its process ended by itself; the next start is due.
    RESTARTING = "restarting"
    #: A one-shot part that ran to its end.
    DONE = "done"
    #: Not ours: an address from the environment.
    EXTERNAL = "external"
    #: Did not become ready in time.
    FAILED = "failed"
    #: Stopped by the supervisor.
    STOPPED = "stopped"


class PartStatus(BaseModel):
    state: PartState = PartState.WAITING
    pid: int | None = None
    #: Starts after the first one.
    restarts: int = 0
    #: When `state` was reached, seconds since the epoch.
    since: float
    #: Seconds from its last start until it was ready.
    ready_seconds: float | None = None
    #: How its process last ended by itself.
    last_exit: str | None = None
    #: Parts that stop before this one, and how it is told to.
    dependents: list[str] = []
    stop_signal: signal.Signals = signal.SIGTERM


class StackStatus(BaseModel):
    state: StackState
    since: float
    supervisor_pid: int
    #: Why `state` is FAILED.
    message: str | None = None
    #: The part that failed.
    failed: str | None = None
    parts: dict[str, PartStatus] = {}

    @classmethod
    def read(cls, root: Path) -> Self | None:
        """The last status of a run directory; None if there is none."""
        try:
            return cls.model_validate_json((root / "status.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, root: Path) -> None:
        write_atomically(root / "status.json", self.model_dump_json(indent=1))

    def not_up(self) -> list[str]:
        """The parts that are neither ready nor done nor somebody else's."""
        up = (PartState.READY, PartState.DONE, PartState.EXTERNAL)
        return [name for name, part in self.parts.items() if part.state not in up]

    def running(self) -> list[str]:
        """The parts that have a process to stop, in the order in which they are stopped."""
        no_process = (PartState.EXTERNAL, PartState.DONE, PartState.WAITING)
        ordered = [name for layer in self.stop_layers() for name in layer]
        return [name for name in ordered if self.parts[name].state not in no_process]

    def stop_layers(self) -> list[list[str]]:
        """The parts in the order in which they are to be stopped; those of one layer may go together."""
        left = dict(self.parts)
        layers: list[list[str]] = []
        while left:
            layer = [name for name, part in left.items() if not set(part.dependents) & left.keys()]
            # A circle cannot be: `start_order` refused it.
            for name in layer or list(left):
                del left[name]
            layers.append(layer)
        return layers
