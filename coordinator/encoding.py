"""Records for the outbox, without ever blocking the event loop for the schema registry."""

import asyncio
from collections.abc import Mapping
from typing import Any

from coordinator.settings import Settings
from schemas import Codec, RegistryUnavailable, WrongShape


class Encoder:
    """The codec asks the registry for the id of each schema once in the life of the process: here, on a thread.

    Belongs to one event loop.
    """

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._codec = codec
        self._timeout = settings.registry_timeout_seconds
        self._known: set[str] = set()
        self._meetings: dict[str, asyncio.Task[str | None]] = {}

    async def encode(self, type: str, record: Mapping[str, Any]) -> bytes:
        """Return ``record`` as the payload of an outbox row.

        Raises:
            WrongShape: the record does not fit its schema.
            RegistryUnavailable: the first record of this type in this process, and the registry does not answer.
        """
        if type not in self._known:
            await self._meet_registry(type, record)
        return self._codec.encode(type, record)

    async def _meet_registry(self, type: str, record: Mapping[str, Any]) -> None:
        """One question for all who need its answer."""
        meeting = self._meetings.get(type)
        if meeting is None or meeting.done():
            meeting = asyncio.create_task(self._ask_registry(type, record), name=f"registry: {type}")
            self._meetings[type] = meeting
        await asyncio.wait((meeting,), timeout=self._timeout)
        if not meeting.done():
            raise RegistryUnavailable("the registry has not given the id of our schema yet")
        if (error := meeting.result()) is not None:
            raise RegistryUnavailable(error)

    async def _ask_registry(self, type: str, record: Mapping[str, Any]) -> str | None:
        """Returns why it failed, so that no exception is lost when nobody waits any more."""
        try:
            await asyncio.to_thread(self._codec.encode, type, record)
        except RegistryUnavailable as error:
            return str(error)
        except WrongShape:
            pass  # the id is asked for first; whose record it is will meet this again
        self._known.add(type)
        return None
