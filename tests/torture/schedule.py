"""Which faults strike, in which order, by a seed. Pure: the same seed gives the same schedule everywhere.

Not at which second: a strike begins when the processes of the one before are ready again, and a machine that is slower
must not meet other faults. How long the platform runs undisturbed in between is the seed's too.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.torture.faults import INJECTED, Fault, Way

#: Share of strikes at which two faults come together.
TOGETHER = 0.2
#: Seconds undisturbed between two strikes.
CALM_SECONDS = (0.5, 4.0)
#: Of a frozen process. The session timeout is 6 s, brokers need a moment more to give its partitions away.
FREEZE_SECONDS = (7.0, 12.0)
#: Without any file that can be written.
FULL_SECONDS = (2.0, 6.0)


@dataclass(frozen=True, slots=True)
class Strike:
    """Faults that come at once, and what the seed says of them."""

    number: int
    #: Seconds to wait before it.
    calm: float
    faults: tuple[Fault, ...]
    #: Seconds, for a process that is frozen.
    freeze: float
    #: Seconds, for a process that cannot write.
    full: float


def strikes(seed: int, names: Sequence[str] = ()) -> Iterator[Strike]:
    """Yield strikes without end: every fault once in a random order, then every fault again in another one.

    Args:
        names: of faults; all by default.

    Raises:
        ValueError: a name is of no fault that can be injected.
    """
    unknown = sorted(set(names) - INJECTED.keys())
    if unknown:
        raise ValueError(f"no fault that can be injected: {', '.join(unknown)}; --list names them")
    chosen = [INJECTED[name] for name in names] or list(INJECTED.values())
    chance = random.Random(f"torture {seed}")
    number = 0
    while True:
        order = chance.sample(chosen, len(chosen))
        while order:
            faults = [order.pop()]
            if order and chance.random() < TOGETHER and _goes_with(faults[0], order[-1]):
                faults.append(order.pop())
            yield Strike(
                number,
                chance.uniform(*CALM_SECONDS),
                tuple(faults),
                chance.uniform(*FREEZE_SECONDS),
                chance.uniform(*FULL_SECONDS),
            )
            number += 1


def _goes_with(one: Fault, other: Fault) -> bool:
    """Two faults of one process are one fault; records cannot be put into a broker that is dead."""
    if one.target == other.target:
        return False
    kinds = {one.way, other.way}
    writes = kinds & {Way.POISON, Way.COPIES, Way.REPLAY, Way.OVERSIZE}
    return not (writes and {"kafka", "postgres"} & {one.target, other.target})
