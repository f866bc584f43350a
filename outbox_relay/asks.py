"""Actions and prepares that wait for their turn, until what was decided overtakes them.

A compensation, commit or abort follows upon the answer to its action or prepare, upon the end of the time for one, or,
of a prepare, upon another participant's no. They have one key, so one partition and one order. When it comes, an action
or prepare of the same step or participant that still waits here is over, and must not be called any more, least of all
after what was decided. Often it is a second copy, or one that a predecessor has called.
"""

from outbox_relay.command import HttpCommand
from outbox_relay.intake import Taken
from outbox_relay.outcome import ASKS


class Asks:
    """Those of one relay. Not for use by several threads."""

    def __init__(self) -> None:
        #: By transaction, and step or participant.
        self._waiting: dict[tuple[str, str], list[Taken]] = {}

    def take(self, taken: Taken) -> None:
        """A command has come: it waits, or ends the waiting of others."""
        if taken.command.operation in ASKS:
            self._waiting.setdefault(_subject(taken.command), []).append(taken)
            return
        for waiting in self._waiting.pop(_subject(taken.command), ()):
            waiting.over = True

    def begin(self, taken: Taken) -> None:
        """It waits no longer."""
        waiting = self._waiting.get(_subject(taken.command))
        if waiting is not None and taken in waiting:
            waiting.remove(taken)
            if not waiting:
                del self._waiting[_subject(taken.command)]

    def forget_revoked(self) -> None:
        """Those of partitions that are another relay's now wait no longer."""
        kept = {key: [one for one in some if not one.window.revoked] for key, some in self._waiting.items()}
        self._waiting = {key: some for key, some in kept.items() if some}


def _subject(command: HttpCommand) -> tuple[str, str]:
    return command.transaction_id, command.subject
