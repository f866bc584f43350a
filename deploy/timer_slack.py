"""Start a command whose threads let the kernel wake them up to so many nanoseconds late (prctl(2), PR_SET_TIMERSLACK).

    python -I deploy/timer_slack.py 1500000 COMMAND ...

Debezium waits for its queue until whole milliseconds have passed and then, because it counts them by a clock of whole
milliseconds, spins for the rest of one more (3.7.0, ``ChangeEventQueue.poll``): at a poll interval of 10 ms that is 8 %
of a core for every connector, for nothing. Woken a millisecond later it finds its time over.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.parts import Part

PR_SET_TIMERSLACK = 29


def with_timer_slack(part: Part, nanoseconds: int) -> Part:
    """The part with this slack for all its threads; Linux only, elsewhere as it was."""
    if sys.platform != "linux":
        return part
    prefix = (sys.executable, "-I", __file__, str(nanoseconds))
    return replace(part, commands=tuple((*prefix, *command) for command in part.commands))


def main(arguments: list[str]) -> None:
    """Set the slack, which ``exec`` and threads inherit, and become the command. A kernel that refuses is no error."""
    slack, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(int(slack)), 0, 0, 0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
