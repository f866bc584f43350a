"""The Avro records of the platform, their wire format and their registration.

``Codec`` turns a record into the bytes of a Kafka value and back (Confluent wire format);
``register_all`` brings the schemas of this package into a registry, with BACKWARD compatibility enforced.
"""

from schemas.codec import Codec
from schemas.errors import (
    FluxoraError,
    IncompatibleSchema,
    InvalidSchema,
    RegistryUnavailable,
    UndecodableRecord,
    WrongShape,
)
from schemas.registration import SCHEMAS, register_all, register_types

__all__ = [
    "SCHEMAS",
    "Codec",
    "FluxoraError",
    "IncompatibleSchema",
    "InvalidSchema",
    "RegistryUnavailable",
    "UndecodableRecord",
    "WrongShape",
    "register_all",
    "register_types",
]
