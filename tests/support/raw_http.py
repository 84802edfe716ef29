"""HTTP/1.1 by hand: requests exactly as written, over sockets whose fate the test can see.

A client library repairs paths, retries on fresh connections and hides how a connection ended; all three are what
these tests are about.
"""

import asyncio
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class IncompleteAnswer(Exception):
    """The connection ended before a whole answer had come."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """Attributes as `httpx2.Response` has them; names of headers in lower case, repeated ones joined by a comma."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def closes(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()


def request(method: str, target: str, headers: Headers = (), body: bytes = b"") -> bytes:
    """A request's bytes. Content-Length is added where the headers say nothing of the body's length."""
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in given}
    if "host" not in names:
        given.insert(0, ("Host", "127.0.0.1"))
    if not names & {"content-length", "transfer-encoding"} and (body or method in ("POST", "PUT", "PATCH")):
        given.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in given)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def exchange(port: int, data: bytes, *, method: str = "POST", timeout_seconds: float = 10.0) -> RawAnswer:
    """Send `data` on a connection of its own and read one answer. Raises IncompleteAnswer or OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout_seconds) as connection:
        connection.sendall(data)
        return read_answer(connection, method=method)


def read_answer(connection: socket.socket, *, method: str = "POST") -> RawAnswer:
    """One answer from a blocking socket. Raises IncompleteAnswer or OSError."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection, received)
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
    while len(body) < length:
        body += _some(connection, received)
    return RawAnswer(status, headers, body[:length])


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(first.split(" ", 2)[1]), headers


def _some(connection: socket.socket, received: bytes) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise IncompleteAnswer(f"the connection ended after {len(received)} bytes of the answer")
    return data


class Connection:
    """A kept connection on asyncio. Raises IncompleteAnswer, or OSError, where the server goes away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Raises ConnectionRefusedError where nobody listens."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, data: bytes) -> RawAnswer:
        """One request, one answer."""
        self._writer.write(data)
        await self._writer.drain()
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, headers = parse_head(head[:-4])
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as error:
            raise IncompleteAnswer(f"the connection ended after {len(error.partial)} bytes of the answer") from None
        return RawAnswer(status, headers, body)

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass  # it was gone already
