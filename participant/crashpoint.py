"""Named lines at which a test kills the process, as ``kill -9`` would.

``FLUXORA_CRASH_AT=participant.after_commit:3`` ends the process, without any clean-up, the third time it comes
to that line (``:1`` when no number is given). Without the variable ``crash_at`` is an empty function.
"""

import os

#: Names the line and, after a colon, the how-manieth visit is the last.
VARIABLE = "FLUXORA_CRASH_AT"
#: What a shell reports for a process that was killed by SIGKILL.
EXIT_CODE = 137

_point, _, _visits = os.environ.get(VARIABLE, "").partition(":")
_left = int(_visits or 1)

if _point:

    def crash_at(name: str) -> None:
        """End the process here if the environment asks for it."""
        global _left
        if name == _point:
            _left -= 1
            if _left <= 0:
                os._exit(EXIT_CODE)

else:

    def crash_at(name: str) -> None:
        """End the process here if the environment asks for it."""
