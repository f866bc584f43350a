"""What a service's command topic holds: commands of sagas and of two-phase commits."""

from collections.abc import Callable, Mapping
from typing import Any

from participant import command, two_phase
from participant.command import Command
from participant.two_phase import ParticipantCommand
from schemas import Codec, UndecodableRecord

AnyCommand = Command | ParticipantCommand

_KINDS: dict[str, Callable[[Mapping[str, Any], str | None], AnyCommand]] = {
    command.COMMAND: command.command_from,
    two_phase.COMMAND: two_phase.command_from,
}


def decoder(codec: Codec) -> Callable[[bytes | None, str | None], AnyCommand]:
    """Return a function from a record's value and traceparent to its command.

    It raises UndecodableRecord for anything that must not reach a handler, RegistryUnavailable as the codec does.
    """

    def decode(value: bytes | None, traceparent: str | None) -> AnyCommand:
        name, record = codec.decode(value)
        if name not in _KINDS:
            raise UndecodableRecord(f"a {name} where a {' or a '.join(_KINDS)} belongs")
        try:
            return _KINDS[name](record, traceparent)
        except (ValueError, KeyError) as error:
            raise UndecodableRecord(f"{name}: {error}") from error

    return decode
