"""Which partition a key belongs to: Kafka's murmur2, as Java clients, Debezium and our producers compute it. Pure."""

import struct

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a topic with so many ``partitions`` that records with this key go to."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bit, with Kafka's seed; unsigned."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for word in struct.unpack_from(f"<{whole // 4}I", data):
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ (k >> 24)) * _M & _MASK)
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)
