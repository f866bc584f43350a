"""New transactions, written together where that is possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from coordinator.creation_store import CreationStore
from coordinator.gathering import Gathering
from coordinator.submission import Submission

#: A larger one is written alone: a batch is held in memory several times over.
_BATCH_ROW_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a creation."""

    transaction_id: UUID
    #: ``None``: written now. Otherwise the key was taken, by a request with this digest.
    holder: bytes | None


@dataclass(frozen=True, slots=True)
class _Wanted:
    new: Submission
    key: str | None
    digest: bytes | None


class Creation:
    """Belongs to one event loop."""

    def __init__(self, store: CreationStore, max_waiting: int) -> None:
        self._store = store
        self._gathering = Gathering("transactions", self._one, self._many, max_waiting)

    async def create(self, new: Submission, key: str | None, digest: bytes | None, *, own_id: bool) -> Created:
        """As :meth:`CreationStore.create`, and exactly that when the client chose the id (``own_id``): only then
        may there be another transaction of that id.

        When the caller is cancelled it may be written all the same, whole.
        """
        wanted = _Wanted(new, key, digest)
        if own_id or len(new.payload) > _BATCH_ROW_BYTES:
            return await self._one(wanted)
        return await self._gathering.write(wanted)

    async def holder(self, key: str) -> Created | None:
        """What a creation with this key would find: the transaction that has it already."""
        found = await self._store.holder(key)
        return None if found is None else Created(*found)

    async def stop(self) -> None:
        await self._gathering.stop()

    async def _one(self, wanted: _Wanted) -> Created:
        return Created(*await self._store.create(wanted.new, wanted.key, wanted.digest))

    async def _many(self, batch: Sequence[_Wanted]) -> list[Created | None]:
        ids = await self._store.create_many([(w.new, w.key, w.digest) for w in batch])
        return [Created(w.new.transaction_id, None) if w.new.transaction_id in ids else None for w in batch]
