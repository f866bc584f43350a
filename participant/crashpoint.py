"""Named lines at which a test kills the process, as ``kill -9`` would.

``FLUXORA_CRASH_AT=participant.after_commit:3`` ends the process, without any clean-up, the third time it comes
to that line (``:1`` when no number is given). ``FLUXORA_CRASH_DIR=DIR`` ends the first of several processes that
comes to a line named by a file in DIR; it takes the file away, so that its successor goes on. Without either
variable ``crash_at`` is an empty function.
"""

import os

#: Names the line and, after a colon, the how-manieth visit is the last.
VARIABLE = "FLUXORA_CRASH_AT"
#: Names the directory whose files name lines.
DIRECTORY = "FLUXORA_CRASH_DIR"
#: What a shell reports for a process that was killed by SIGKILL.
EXIT_CODE = 137

_point, _, _visits = os.environ.get(VARIABLE, "").partition(":")
_left = int(_visits or 1)
_directory = os.environ.get(DIRECTORY)


def _may_end(name: str) -> bool:
    global _left
    if name == _point:
        _left -= 1
        return _left <= 0
    if _directory:
        try:
            os.unlink(os.path.join(_directory, name))
        except FileNotFoundError:
            return False
        return True
    return False


if _point or _directory:

    def crash_at(name: str) -> None:
        """End the process here if the environment asks for it."""
        if _may_end(name):
            os._exit(EXIT_CODE)

else:

    def crash_at(name: str) -> None:
        """End the process here if the environment asks for it."""
