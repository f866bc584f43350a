"""Worlds, one after the other, and what is told of one that fails."""

import logging
import os
import random
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from tests.simulation.chance import Fault
from tests.simulation.shrinking import shrunk
from tests.simulation.world import Parts, World

#: Names the one seed to run.
SEED = "FLUXORA_SIMULATION_SEED"
#: Lines of the story of a failure that are told.
_LINES = 60


@dataclass
class Found:
    """A world in which a rule was broken, or something raised."""

    seed: int
    error: Exception
    faults: list[Fault]
    story: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = "\n".join(f"  {fault}" for fault in self.faults) or "  none"
        story = "\n".join(f"  {line}" for line in self.story[-_LINES:])
        notes = "; ".join(getattr(self.error, "__notes__", []))
        return (
            f"{self.error!r} ({notes})\nreplay it with {SEED}={self.seed}; the faults that it takes:\n{faults}\n"
            f"what happened:\n{story}"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """The product logs every crash; here there are thousands."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def find(seeds: Iterable[int], parts: Parts | None = None, *, shrink: bool = True) -> Found | None:
    """Run worlds until one fails."""
    for seed in seeds:
        world = World(seed, parts)
        error = _failure(world)
        if error is not None:
            found = Found(seed, error, world.chance.struck)
            return _shrunk(found, parts) if shrink else found
    return None


def _failure(world: World) -> Exception | None:
    try:
        world.run()
    except Exception as error:
        return error
    return None


def _shrunk(found: Found, parts: Parts | None) -> Found:
    """Of those that fail in the same way."""
    rule = _rule(found.error)

    def fails(faults: Set[Fault]) -> bool:
        error = _failure(World(found.seed, parts, faults))
        return error is not None and _rule(error) == rule

    faults = shrunk(found.faults, fails, most=150)
    world = World(found.seed, parts, frozenset(faults))
    world.schedule.story = []
    error = _failure(world)
    if error is None:
        # A world that is not the same each time: that is a fault of the simulator.
        return found
    return Found(found.seed, error, faults, world.schedule.story)


def _rule(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(';')[0]}"


@dataclass
class Run:
    """What a run of many worlds came to."""

    found: Found | None
    worlds: int
    steps: int
    faults: int
    seconds: float

    def __str__(self) -> str:
        rate = self.steps / max(self.seconds, 1e-9) * 60 / 1e6
        return f"{self.worlds} worlds, {self.steps} steps, {self.faults} faults: {rate:.2f} million steps a CPU minute"


def simulate(seconds: float, parts: Parts | None = None) -> Run:
    """Run worlds with fresh seeds for so long, or the one that the environment names, until one fails."""
    fixed = os.environ.get(SEED)
    fresh = random.SystemRandom()
    until = time.monotonic() + seconds
    began = time.process_time()
    run = Run(None, 0, 0, 0, 0.0)
    with quietly():
        while run.found is None:
            seed = fresh.getrandbits(40) if fixed is None else int(fixed)
            world = World(seed, parts)
            error = _failure(world)
            run.worlds += 1
            run.steps += world.schedule.steps
            run.faults += len(world.chance.struck)
            run.seconds = time.process_time() - began
            if error is not None:
                run.found = _shrunk(Found(seed, error, world.chance.struck), parts)
            if fixed is not None or time.monotonic() > until:
                break
    return run
