"""Several answers as one stream of pieces, in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from deltatune.serving.texts.answer_stream import Answer, Piece


async def merged(streams: Sequence[Answer]) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of all answers, each with the answer's number; None at the end of an answer.

    Raises the first error of any of them. Whoever stops reading ends all of them.
    """
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def read(number: int, stream: Answer) -> None:
        try:
            async for piece in stream.pieces():
                queue.put_nowait((number, piece))
            queue.put_nowait((number, None))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(read(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            left -= piece is None
            yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        for stream in streams:
            stream.cancel()
