"""Looks at the folder without waiting for ever: a network file system that is away blocks for minutes.

There is one look at a time, in a thread that nobody waits for at the end of the process. Whoever needs it stops waiting
after `SCAN_SECONDS`; the next one waits for the same look.
"""

import asyncio
import threading
from typing import Protocol

from service.errors import ConfigurationError
from service.repository.source import FoundModel

SCAN_SECONDS = 10.0  # a look takes milliseconds

Found = dict[str, FoundModel]


class Source(Protocol):
    def scan(self) -> Found: ...


class Scanner:
    """Event loop only."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._looking: asyncio.Future[Found] | None = None

    async def scan(self) -> Found:
        """What the source finds. Raises ConfigurationError, also where it does not answer in time."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._look, args=(self._looking,), name="scan", daemon=True).start()
        looking = self._looking
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                return await asyncio.shield(looking)
        except TimeoutError:
            raise ConfigurationError(
                f"repository.path: no answer within {SCAN_SECONDS:g} s; is its file system there?"
            ) from None
        finally:
            if looking.done():
                self._looking = None

    def _look(self, future: "asyncio.Future[Found]") -> None:
        try:
            seen, error = self._source.scan(), None
        except Exception as caught:  # noqa: BLE001  # whoever waits gets it
            seen, error = {}, caught
        loop = future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, future, seen, error)


def _settle(future: "asyncio.Future[Found]", seen: Found, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(seen)
    else:
        future.set_exception(error)
