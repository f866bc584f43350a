"""What goes wrong: a function of the seed and of the place, so that one fault can be left out and the others stay.

A fault is known by where it strikes: a kind, a tag (whose line, whose message), and how often that place was passed
before. Whether it strikes follows from these three and the seed alone, not from what was asked before. So a run that
failed can be replayed with fewer faults, and is shrunk to those that matter (``tests.simulation.shrinking``).
"""

import random
from collections.abc import Set
from typing import NamedTuple
from zlib import crc32

_BITS = 40


class Fault(NamedTuple):
    """One thing that went wrong."""

    kind: str
    #: Where: a process and its line, a message.
    place: str
    #: How often the place had been passed without it, or with it.
    visit: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.place}" + (f" (visit {self.visit})" if self.visit else "")


class Chance:
    def __init__(self, seed: int, only: Set[Fault] | None = None) -> None:
        """``only``: faults that may strike; ``None``: whatever the seed says."""
        self.seed = seed
        #: For what a world is made of, before it starts; never asked while it runs.
        self.setup = random.Random(seed)
        #: How hostile this world is.
        self.harm = self.setup.choice([0.0, 0.15, 0.4, 1.0, 1.0])
        self.calm = False
        self.struck: list[Fault] = []
        self._only = only
        self._visits: dict[tuple[str, str], int] = {}
        self._tags: dict[str, int] = {}

    def fault(self, kind: str, place: str, share: float) -> bool:
        """Whether something goes wrong here and now; ``share`` of the times in the most hostile world, if at all."""
        if self.calm:
            return False
        key = kind, place
        visit = self._visits.get(key, 0)
        self._visits[key] = visit + 1
        if self._draw(kind, place, visit) >= share * self.harm:
            return False
        fault = Fault(kind, place, visit)
        if self._only is not None and fault not in self._only:
            return False
        self.struck.append(fault)
        return True

    def amount(self, kind: str, place: str, below: int) -> int:
        """A number from 0 up to ``below``, that goes with a fault which has just struck at this place."""
        return int(self._draw(kind, place, -self._visits.get((kind, place), 0)) * below)

    def _draw(self, kind: str, place: str, visit: int) -> float:
        # Hashes of integers are the same in every process; those of text are not.
        return (hash((self.seed, self._tag(kind), self._tag(place), visit)) % (1 << _BITS)) / (1 << _BITS)

    def _tag(self, text: str) -> int:
        tag = self._tags.get(text)
        if tag is None:
            tag = self._tags[text] = crc32(text.encode())
        return tag
