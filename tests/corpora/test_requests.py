"""Byte streams that a fuzzer of HTTP servers collected, each refused or answered; h11 counts the requests in them."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass

import h11
import pytest

from tests.abuse.standing import Baseline
from tests.corpora.conftest import CORPORA
from tests.support.raw_http import parse_head
from tests.support.server_process import ServerProcess

FOLDER = CORPORA / "h2o"
DOCUMENTED = {200, 204, 206, 304, 307, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 431, 501, 505}
_AT_ONCE = 32
_SILENCE_SECONDS = 0.5


@dataclass(frozen=True)
class Expected:
    """How many whole requests h11 finds in a stream, and whether it then refuses what follows."""

    requests: int
    refused: bool


def careful(data: bytes) -> Expected:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    connection.receive_data(data)
    requests = 0
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return Expected(requests, refused=False)
            if isinstance(event, h11.EndOfMessage):
                requests += 1
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return Expected(requests, refused=False)
                connection.start_next_cycle()
    except h11.ProtocolError:
        return Expected(requests, refused=True)


async def statuses(port: int, data: bytes) -> list[int]:
    """Of every answer until the server closes or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(data)
        while chunk := await asyncio.wait_for(reader.read(65536), _SILENCE_SECONDS):
            received += chunk
    except (TimeoutError, ConnectionError):
        pass  # it waits for more, or closed while we wrote
    finally:
        writer.close()
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 \d\d\d ", head), received[:200]
        status, headers = parse_head(head)
        found.append(status)
        received = rest[int(headers.get("content-length", "0")) :] if status >= 200 else rest
    return found


@pytest.mark.skipif(not FOLDER.is_dir(), reason="not fetched")
async def test_no_stream_gets_more_answers_than_a_strict_parser_finds_requests(
    server: ServerProcess, baseline: Baseline
) -> None:
    room = asyncio.Semaphore(_AT_ONCE)
    wrong: list[str] = []
    answers: Counter[int] = Counter()

    async def check(name: str, data: bytes) -> None:
        async with room:
            got = await statuses(server.port, data)
        expected = careful(data)
        if undocumented := set(got) - DOCUMENTED:
            wrong.append(f"{name}: {undocumented}")
        if len(got) > expected.requests + 1:
            wrong.append(f"{name}: {got}, where h11 finds {expected}")
        answers.update(got)

    streams = await asyncio.to_thread(lambda: {file.name: file.read_bytes() for file in sorted(FOLDER.iterdir())})
    await asyncio.gather(*[check(name, data) for name, data in streams.items()])
    print(f"{len(streams)} streams, answers {dict(sorted(answers.items()))}")
    await asyncio.to_thread(baseline.assert_golden)
    await asyncio.to_thread(baseline.assert_nothing_left)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:50])
