"""What a user writes: a service and its handlers."""

from collections.abc import Callable
from typing import Any, TypeVar

from participant.command import Operation
from participant.handlers import Handlers, InvalidService
from participant.logs import log_to_stderr
from participant.settings import Settings
from participant.worker import Worker

__all__ = ["InvalidService", "Service"]

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


class Service:
    """A participant: its handlers by command name, and the process that runs them.

    A handler gets the connection of the batch's transaction and the command. Its rows commit together with the
    reply, exactly once. It must not commit or roll back, and should do nothing outside this database that may not
    happen twice. It returns

    - a dict (JSON, the step's result) or None: done;
    - ``Refused(reason)``, from an action: the business says no, the saga is compensated; rows are rolled back;

    or raises: the attempt has failed, everything it wrote is rolled back, and the saga tries again by its policy.
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        """``name`` is the service's name in sagas: it consumes ``<name>.commands``."""
        if not name:
            raise InvalidService("a service needs a name")
        self.name = name
        self.handlers = Handlers()
        self._settings = settings

    def action(self, name: str, *, batch: bool = False, compensates: bool = True) -> Callable[[_Handler], _Handler]:
        """Register the handler of a command.

        Args:
            name: the command's name; a step's command is its name unless the saga says otherwise.
            batch: the handler takes ``list[Command]``, each of another transaction, and returns as many answers:
                several times faster, because it can write all rows with one statement.
            compensates: False if the action leaves nothing to undo; its compensation is then answered by itself.
        """

        def register(handler: _Handler) -> _Handler:
            self.handlers.add(Operation.ACTION, name, handler, batch=batch)
            if not compensates:
                self.handlers.without_compensation(name)
            return handler

        return register

    def compensation(self, name: str, *, batch: bool = False) -> Callable[[_Handler], _Handler]:
        """Register the handler that undoes the action ``name``. It cannot refuse: it is tried until it succeeds.

        It is called only for an action that ran here, at most once, with what the action returned as
        ``command.result``.
        """

        def register(handler: _Handler) -> _Handler:
            self.handlers.add(Operation.COMPENSATION, name, handler, batch=batch)
            return handler

        return register

    def run(self) -> None:
        """Handle commands until SIGTERM or SIGINT, then finish the batch in hand and return.

        Raises:
            InvalidService: an action without a compensation, or the like; the message names all of it.
        """
        self.handlers.check()
        log_to_stderr()
        worker = Worker(self.name, self.handlers, self._settings or Settings.from_environment())
        worker.stop_on_signals()
        worker.run()
