"""Where the time of one saga goes, hop by hop. Pure.

The moments of a saga of three steps, in their order::

    due ─ began ─ committed ─ input 0 ─ command 1 ─ step 1 began ─ replied 1 ─ input 1 ─ command 2 … input 3 ─ ended
    └─ the client's own ──┘   appended  produced    └─ participant's own ─┘   appended

All are read from clocks of one machine: the client's (``due``, ``began``, ``committed``, ``ended``), PostgreSQL's
(``began`` and ``written`` of a step), Kafka's (``input``: LogAppendTime, whole milliseconds) and the processor's
(``command``: CreateTime, whole milliseconds). So a hop is off by up to a millisecond; their sum is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.distribution import summary

#: What each hop means, in the order in which a saga meets them. Those that a saga meets once a step come in the middle.
MEANINGS = {
    "late": "due → the client begins: it waits for one of its own connections (open loop only)",
    "client": "the client's transaction: BEGIN, outbox row, COMMIT with fsync",
    "capture of start": "commit returned → input appended: walsender, Debezium's queue and poll, producer, broker",
    "fold": "input appended → command handed to the producer: Faust's fetch, decision, the batch's commit with fsync",
    "delivery": "command handed to the producer → the participant's transaction begins: linger, broker, fetch",
    "work": "participant's transaction begins → its reply is in the outbox: inbox, barrier, business row",
    "capture of reply": "reply written → reply appended: COMMIT with fsync, walsender, Debezium, producer, broker",
    "end": "last reply appended → the client hears of the end: fetch, decision, the batch's commit with fsync, NOTIFY",
}
#: Of the hops above, those that a saga meets once for each of its steps.
PER_STEP = ("fold", "delivery", "work", "capture of reply")


@dataclass(frozen=True, slots=True)
class Trace:
    """The moments of one saga, seconds since 1970."""

    due: float
    began: float
    committed: float
    #: When the start and then each reply was appended to the input topic: one more than there are steps.
    inputs: Sequence[float]
    #: When each step's command was handed to the processor's producer.
    commands: Sequence[float]
    #: When each participant's transaction began.
    step_began: Sequence[float]
    #: When each participant's reply was written into its outbox.
    replied: Sequence[float]
    ended: float

    @property
    def complete(self) -> bool:
        """Whether all moments are known: nothing came twice, and nothing is missing."""
        steps = len(self.commands)
        return steps > 0 and (len(self.inputs), len(self.step_began), len(self.replied)) == (steps + 1, steps, steps)

    def hops(self) -> dict[str, list[float]]:
        """Seconds by hop; of those in ``PER_STEP`` one for each step. They add up to ``ended - due``."""
        found: dict[str, list[float]] = {
            "late": [self.began - self.due],
            "client": [self.committed - self.began],
            # Negative when Debezium was quicker than the answer to the client's COMMIT.
            "capture of start": [self.inputs[0] - self.committed],
            "fold": [],
            "delivery": [],
            "work": [],
            "capture of reply": [],
            "end": [self.ended - self.inputs[-1]],
        }
        for k, command in enumerate(self.commands):
            found["fold"].append(command - self.inputs[k])
            found["delivery"].append(self.step_began[k] - command)
            found["work"].append(self.replied[k] - self.step_began[k])
            found["capture of reply"].append(self.inputs[k + 1] - self.replied[k])
        return found


def by_hop(traces: Iterable[Trace]) -> dict[str, Mapping[str, float]]:
    """For each hop a summary over all traces, ``times`` it is met, and ``share`` of all their time, in percent."""
    pooled: dict[str, list[float]] = {name: [] for name in MEANINGS}
    for trace in traces:
        for name, times in trace.hops().items():
            pooled[name] += times
    whole = sum(map(sum, pooled.values()))
    sagas = len(pooled["end"])
    return {
        name: {
            **summary([one * 1000 for one in times]),
            "times": len(times) / sagas,
            "share_percent": round(sum(times) * 100 / whole, 1) if whole else 0.0,
        }
        for name, times in pooled.items()
        if times
    }
