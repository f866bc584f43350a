"""What is known of one input partition, and the error that ends a process that must not go on. Pure."""

from dataclasses import dataclass


class Halted(Exception):
    """Going on would break a guarantee, so the process ends; nothing of the batch was written.

    Raised when another process owns the partition (a zombie lets go), when the log no longer holds inputs that
    were never folded, and when the topic was made again.
    """


@dataclass(slots=True)
class PartitionPosition:
    """The partition's row as this process last saw or moved it."""

    partition: int
    #: The first input that is not folded. Below it: a redelivery, skipped. Above it: inputs are missing, fetched.
    next_offset: int
    #: Effects of inputs below it have left. Between it and ``next_offset``: perhaps.
    published_through: int


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the input topic, wherever it was read."""

    partition: int
    offset: int
    #: The broker's append time, ms.
    timestamp: int
    key: bytes | None
    value: bytes | None
