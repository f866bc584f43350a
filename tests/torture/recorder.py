"""The history on disk: a JSON line for everything, written as it happens, from any thread."""

import threading
from pathlib import Path
from typing import BinaryIO

from tests.torture.history import History, Line, encode


class Recorder:
    """Keeps the history in memory too: the judge needs all of it."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = file.open("wb")
        self._lock = threading.Lock()
        self.history = History()

    def add(self, line: Line) -> None:
        text = encode(line) + b"\n"
        with self._lock:
            self._file.write(text)
            self.history.add(line)

    def close(self) -> None:
        """Write what is left. What comes later is kept in memory only."""
        with self._lock:
            self._file.flush()
