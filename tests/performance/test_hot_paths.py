"""The hot paths have not become slower: their CPU time, as a ratio to a plain piece of work in the same process.

A time would tell the machine; a ratio tells the code. Work and reference alternate, and of each the least time of
several counts: whatever else the machine does can only add to it. While the ratio is too high it is measured on, for a
while. When a change is worth its cost, say so in the commit and put the new ratio here; when one makes a path cheaper,
put it here too, or the next regression hides behind it.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.performance.hot_paths import Fold, Participant, Publish, Reference

#: CPU time of one saga, command or event to that of one piece of reference work, when it was last measured.
RATIOS = {"fold": 17.0, "participant": 0.9, "publish": 1.1}
#: How much more is a failure.
HEADROOM = 1.4
#: Short pieces of work, of some milliseconds, and many: one of them will have been left alone.
ROUNDS = 40
#: Seconds that it may take until one has been.
PATIENCE_S = 30.0
SAGAS = 20
REFERENCES = 200
COMMANDS = 200
EVENTS = 200


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """Its time depends on what other tests have left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def check(path: str, work: Callable[[], float]) -> None:
    """Compare the least seconds of ``work`` with the least seconds of one piece of reference work."""
    limit = RATIOS[path] * HEADROOM
    reference, give_up = Reference(), time.monotonic() + PATIENCE_S
    least_reference, least_work, rounds = float("inf"), float("inf"), 0
    while rounds < ROUNDS or (least_work / least_reference > limit and time.monotonic() < give_up):
        least_reference = min(least_reference, timed(lambda: reference.run(REFERENCES)) / REFERENCES)
        least_work = min(least_work, work())
        rounds += 1
    measured = least_work / least_reference
    sys.stdout.write(f"{path}: {measured:.2f}\n")
    assert measured <= limit, (
        f"{path} costs {measured:.2f} pieces of reference work; it was {RATIOS[path]}, {limit:.2f} may be"
    )


def test_processor_folds_a_saga_as_cheaply_as_before() -> None:
    fold = Fold()

    def sagas() -> float:
        """Of the processor alone: what clients and services encode is made meanwhile, and not counted."""
        inputs, spent, folded = fold.starts(SAGAS), 0.0, 0
        while inputs:
            began = time.thread_time()
            effects = fold.fold(inputs)
            spent += time.thread_time() - began
            folded += len(inputs)
            inputs = fold.answers(effects)
        assert folded == 4 * SAGAS  # the start and three replies: all of them ran to their end
        return spent / SAGAS

    check("fold", sagas)


def test_participant_decodes_and_answers_a_command_as_cheaply_as_before() -> None:
    participant = Participant()
    check("participant", lambda: timed(lambda: participant.run(COMMANDS)) / COMMANDS)


def test_publish_encodes_an_event_as_cheaply_as_before() -> None:
    publish = Publish()
    check("publish", lambda: timed(lambda: publish.run(EVENTS)) / EVENTS)
