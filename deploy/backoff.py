"""How long to wait before a part that died is started again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Capped exponential backoff with jitter, in seconds. The first wait is `first` exactly, so that a single
    crash costs next to nothing; an uptime of `stable` starts the count anew."""

    first: float
    cap: float
    stable: float
    random: Callable[[], float] = field(default=random.random)
    failures: int = 0

    def wait_after(self, uptime: float) -> float:
        """Seconds to wait, given how long the process that just ended had run."""
        if uptime >= self.stable:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return self.first
        # From the second on at least half a second, doubling. The jitter only shortens: parts that died
        # together (their database went) do not come back in step.
        ceiling = min(self.cap, max(self.first, 0.25) * 2.0 ** (self.failures - 1))
        return ceiling * (0.5 + 0.5 * self.random())
