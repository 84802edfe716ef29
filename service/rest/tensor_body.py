"""A tensor request's body, read into one buffer that the engine can use as it lies."""

import asyncio

import numpy as np
from starlette.requests import Request

from service.config import LimitSettings
from service.errors import EmptyBody, MalformedRequest, PayloadTooLarge
from service.pipeline import Ticket
from service.rest import content_encoding
from service.rest.connection import next_piece

_LINE_BYTES = 64  # tensors begin where a cache line does
_INLINE_BYTES = 64 * 1024  # longer bodies are inflated beside the event loop
_MOST_DIGITS = 18  # of a number in a header


async def read(request: Request, ticket: Ticket, limits: LimitSettings, lead: int, encoding: str | None) -> memoryview:
    """The body, inflated where `encoding` says so; what follows its first `lead` bytes is aligned.

    Each byte is copied once, from where the server received it to where the engine may read it. Raises
    PayloadTooLarge, EmptyBody, Overloaded, MalformedRequest, and what `next_piece` raises.
    """
    limit = limits.tensor_body_bytes
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdecimal() and len(declared) <= _MOST_DIGITS else None
    if declared.isdecimal() and (expected is None or expected > limit):
        raise PayloadTooLarge(f"The body has more than {limit:,} bytes.")
    buffer = _aligned(expected or 0, lead)
    size = 0
    rest: list[bytes] = []
    more = True
    while more:
        chunk, more = await next_piece(request)
        if size + len(chunk) > limit:
            raise PayloadTooLarge(f"The body has more than {limit:,} bytes.")
        ticket.grow(len(chunk))
        if expected is None:
            rest.append(chunk)
        else:
            buffer[size : size + len(chunk)] = chunk
        size += len(chunk)
    if size == 0:
        raise EmptyBody("The body is empty.")
    body = buffer[:size] if expected is not None else _realigned(b"".join(rest), lead)
    if encoding is not None:
        body = _realigned(await _inflated(body, encoding, limit, ticket), lead)
    ticket.body_received()
    return body


async def _inflated(body: memoryview, encoding: str, limit: int, ticket: Ticket) -> bytes:
    if len(body) > _INLINE_BYTES:
        plain = await asyncio.to_thread(content_encoding.inflated, body, encoding, limit)
    else:
        plain = content_encoding.inflated(body, encoding, limit)
    ticket.grow(len(plain))
    if not plain:
        raise MalformedRequest("The body is empty when inflated.")
    return plain


def _aligned(size: int, lead: int) -> memoryview:
    """A buffer whose byte `lead` lies on a cache line. Untouched memory costs nothing yet."""
    room = np.empty(size + _LINE_BYTES, np.uint8)
    start = -(room.ctypes.data + lead) % _LINE_BYTES
    return room[start : start + size].data


def _realigned(body: bytes, lead: int) -> memoryview:
    if lead >= len(body):
        return memoryview(body)
    moved = _aligned(len(body), lead)
    moved[:] = body
    return moved
