"""Which function handles which command."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from participant.command import Command, Operation, Outcome, Reply
from schemas import FluxoraError


class InvalidService(FluxoraError):
    """The handlers of a service do not fit together; the service does not start."""


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A function of the service. ``batch``: it takes a list of commands and returns a list of answers."""

    name: str
    call: Callable[..., Any]
    batch: bool


class Handlers:
    """The registry of one service."""

    def __init__(self) -> None:
        self._known: dict[tuple[Operation, str], Handler] = {}
        self._without_compensation: set[str] = set()

    def add(self, operation: Operation, name: str, call: Callable[..., Any], *, batch: bool) -> None:
        if not name:
            raise InvalidService("a command's name must not be empty")
        if (operation, name) in self._known:
            raise InvalidService(f"the {operation.value.lower()} of {name!r} has two handlers")
        self._known[operation, name] = Handler(name, call, batch)

    def without_compensation(self, name: str) -> None:
        self._without_compensation.add(name)

    def check(self, *, actions_needed: bool = True) -> None:
        """Raise InvalidService, naming everything that is missing."""
        actions = {name for operation, name in self._known if operation is Operation.ACTION}
        compensations = {name for operation, name in self._known if operation is Operation.COMPENSATION}
        problems = []
        if not actions and actions_needed:
            problems.append("there is no action: decorate a function with @service.action(name)")
        for name in sorted(actions - compensations - self._without_compensation):
            problems.append(
                f"the action {name!r} has no compensation: add @service.compensation({name!r}), "
                "or compensates=False if it leaves nothing to undo"
            )
        for name in sorted(compensations - actions):
            problems.append(f"the compensation {name!r} belongs to no action")
        for name in sorted(compensations & self._without_compensation):
            problems.append(f"{name!r} has compensates=False and a compensation")
        if problems:
            raise InvalidService("; ".join(problems))

    def undoes(self, command: Command) -> bool:
        """Tell whether the command has anything to do: not so for the compensation of an action without one."""
        return command.operation is Operation.ACTION or command.name not in self._without_compensation

    def find(self, command: Command) -> Handler | None:
        return self._known.get((command.operation, command.name))

    def unknown(self, command: Command) -> Reply:
        """The answer to a command without a handler.

        An unknown action is refused: nothing was done. The compensation of an action that *did* run here must not
        be answered as done by a version of the service that has lost its handler: it fails, and is tried again.
        """
        there = ", ".join(sorted(name for operation, name in self._known if operation is command.operation))
        reason = f"there is no {command.operation.value.lower()} {command.name!r} here; there are: {there}"
        return Reply(Outcome.REFUSED if command.operation is Operation.ACTION else Outcome.FAILED, reason=reason)
