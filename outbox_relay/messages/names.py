"""What names and texts of a message may be."""

import re

from saga_processors.definition import NAME

#: Of a message: a name with the separators that event types are written with. It is sent as a header.
TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")
#: Characters of a key.
KEY_LIMIT = 255
#: Ends the name of a destination's topic.
MESSAGES = ".messages"
COMMANDS = ".commands"
#: Where messages that FAILED go.
DEAD_LETTERS = "fluxora.messages.dlq"

__all__ = ["COMMANDS", "DEAD_LETTERS", "KEY_LIMIT", "MESSAGES", "NAME", "TYPE"]
