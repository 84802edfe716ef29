"""The body of calls that change the server: a small JSON object. Who may call is decided before, in `credentials`."""

from typing import Any

from starlette.requests import Request

from service.errors import MalformedRequest, PayloadTooLarge
from service.rest import uploads
from service.rest.connection import next_piece

_MOST_BYTES = 64 * 1024  # of a body that says a handful of things


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object of a call; `{}` where the body is empty, as clients send neither length nor type then."""
    body, more = b"", True
    while more:
        chunk, more = await next_piece(request)
        body += chunk
        if len(body) > _MOST_BYTES:
            raise PayloadTooLarge(f"The body has more than {_MOST_BYTES:,} bytes.")
    found = uploads.parse_json(body) if body.strip() else {}
    if not isinstance(found, dict):
        raise MalformedRequest("The JSON is not an object.")
    return found
