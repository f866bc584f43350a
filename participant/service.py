"""What a user writes: a service and its handlers."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import create_engine

from participant.command import Operation
from participant.handlers import Handlers, InvalidService
from participant.logs import log_to_stderr
from participant.settings import Settings, sqlalchemy_url
from participant.two_phase import Participant
from participant.whole import EndHandler, PrepareHandler, WholeTransaction
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
        self._participant: Participant | None = None
        self._prepare: PrepareHandler | None = None
        self._commit: EndHandler | None = None
        self._abort: EndHandler | None = None

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

    # Two-phase commit

    def participant(self, manager: Participant) -> None:
        """Have a ResourceManager or PreparedTransactionManager answer this service's two-phase commits."""
        if self._participant is not None:
            raise InvalidService("the service has a participant already")
        self._participant = manager

    def prepare(self, handler: PrepareHandler) -> PrepareHandler:
        """Register what prepares a two-phase commit: it writes what must be there until the end, or returns Refused.

        With ``commit`` and ``abort`` it takes the place of ``participant``; ``participant.whole`` says when each is
        called. All three get the connection, the transaction's id and the payload.
        """
        self._prepare = handler
        return handler

    def commit(self, handler: EndHandler) -> EndHandler:
        """Register what makes prepared work final. It cannot refuse: if it raises, it is called again."""
        self._commit = handler
        return handler

    def abort(self, handler: EndHandler) -> EndHandler:
        """Register what takes prepared work back. It cannot refuse: if it raises, it is called again."""
        self._abort = handler
        return handler

    def check(self) -> None:
        """Raise InvalidService, naming what is missing, if the service cannot run."""
        own = [handler is not None for handler in (self._prepare, self._commit, self._abort)]
        if any(own) and not all(own):
            raise InvalidService("@service.prepare, @service.commit and @service.abort belong together: one is missing")
        if any(own) and self._participant is not None:
            raise InvalidService("the service has a participant and handlers of its own: it can have only one of them")
        self.handlers.check(actions_needed=not any(own) and self._participant is None)

    def _taking_part(self, settings: Settings) -> Participant | None:
        if self._prepare is None or self._commit is None or self._abort is None:
            return self._participant
        engine = create_engine(sqlalchemy_url(settings.database_url), pool_size=1, max_overflow=1)
        return WholeTransaction(
            engine, service=self.name, prepare=self._prepare, commit=self._commit, abort=self._abort
        )

    def run(self) -> None:
        """Handle commands until SIGTERM or SIGINT, then finish the batch in hand and return.

        Raises:
            InvalidService: an action without a compensation, or the like; the message names all of it.
        """
        self.check()
        log_to_stderr()
        settings = self._settings or Settings.from_environment()
        worker = Worker(self.name, self.handlers, settings, self._taking_part(settings))
        worker.stop_on_signals()
        worker.run()
