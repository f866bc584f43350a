"""What arrives together is written together, and each caller is told about its own."""

import asyncio
from collections.abc import Sequence

import psycopg
import pytest

from coordinator.gathering import Gathering
from web.database import DatabaseUnavailable


class Writer:
    """Remembers how it was called; ``free`` holds it back."""

    def __init__(self) -> None:
        self.alone: list[int] = []
        self.together: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None
        self.odd_one = -1

    async def one(self, item: int) -> str:
        await self.free.wait()
        self.alone.append(item)
        if item == self.odd_one:
            raise ValueError(item)
        return f"alone {item}"

    async def many(self, items: Sequence[int]) -> list[str | None]:
        await self.free.wait()
        self.together.append(list(items))
        if self.error is not None:
            raise self.error
        return [None if item == self.odd_one else f"together {item}" for item in items]


def gathering(writer: Writer, most: int = 1000) -> Gathering[int, str]:
    return Gathering("numbers", writer.one, writer.many, most)


def test_an_item_that_comes_alone_is_written_alone_and_at_once() -> None:
    async def run() -> None:
        writer = Writer()
        assert await gathering(writer).write(7) == "alone 7"
        assert writer.together == []

    asyncio.run(run())


def test_what_comes_meanwhile_is_written_together_and_each_gets_its_own_answer() -> None:
    async def run() -> None:
        writer = Writer()
        writer.free.clear()
        numbers = gathering(writer)
        writing = [asyncio.create_task(numbers.write(i)) for i in range(200)]
        await asyncio.sleep(0.01)
        writer.free.set()
        answers = await asyncio.gather(*writing)
        assert [answer.split()[1] for answer in answers] == [str(i) for i in range(200)]
        assert len(writer.alone) + len(writer.together) < 10
        assert max(len(batch) for batch in writer.together) == 64
        await numbers.stop()

    asyncio.run(run())


def test_one_that_cannot_be_written_with_the_others_is_written_alone() -> None:
    async def run() -> None:
        writer = Writer()
        writer.free.clear()
        writer.odd_one = 5
        numbers = gathering(writer)
        writing = [asyncio.create_task(numbers.write(i)) for i in range(10)]
        await asyncio.sleep(0.01)
        writer.free.set()
        answers = await asyncio.gather(*writing, return_exceptions=True)
        assert isinstance(answers[5], ValueError)
        assert all(isinstance(answer, str) for i, answer in enumerate(answers) if i != 5)

    asyncio.run(run())


@pytest.mark.parametrize("error", [psycopg.DataError("one of them"), DatabaseUnavailable("away")])
def test_a_batch_that_fails_by_one_is_split_and_one_that_is_in_doubt_is_told_to_all(error: Exception) -> None:
    async def run() -> None:
        writer = Writer()
        writer.free.clear()
        writer.error = error
        numbers = gathering(writer)
        writing = [asyncio.create_task(numbers.write(i)) for i in range(20)]
        await asyncio.sleep(0.01)
        writer.free.set()
        answers = await asyncio.gather(*writing, return_exceptions=True)
        if isinstance(error, psycopg.Error):
            assert answers == [f"alone {i}" for i in range(20)]
        else:
            assert sum(answer is error for answer in answers) == sum(len(batch) for batch in writer.together)

    asyncio.run(run())


def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    async def run() -> None:
        writer = Writer()
        writer.free.clear()
        numbers = gathering(writer)
        writing = [asyncio.create_task(numbers.write(i)) for i in range(10)]
        await asyncio.sleep(0.01)
        for task in writing[::2]:
            task.cancel()
        writer.free.set()
        answers = await asyncio.gather(*writing, return_exceptions=True)
        assert all(isinstance(answer, str) for answer in answers[1::2])
        assert await numbers.write(99) == "alone 99"

    asyncio.run(run())


def test_too_many_that_wait_are_refused() -> None:
    async def run() -> None:
        writer = Writer()
        writer.free.clear()
        numbers = gathering(writer, most=3)
        writing = [asyncio.create_task(numbers.write(i)) for i in range(4)]
        await asyncio.sleep(0.01)
        writing += [asyncio.create_task(numbers.write(i)) for i in range(10, 20)]
        await asyncio.sleep(0.01)
        refused = [task for task in writing if task.done()]
        assert refused and all(isinstance(task.exception(), DatabaseUnavailable) for task in refused)
        writer.free.set()
        await asyncio.gather(*writing, return_exceptions=True)

    asyncio.run(run())
