"""What calls that change the server share: the token, and a small JSON object as their body."""

import hmac
from typing import Any

from pydantic import SecretStr
from starlette.requests import Request

from service.errors import AdminDisabled, MalformedRequest, PayloadTooLarge, Unauthorized
from service.rest import uploads

_MOST_BYTES = 64 * 1024  # of a body that says a handful of things


def authorize(request: Request, token: SecretStr | None) -> None:
    """Raises AdminDisabled or Unauthorized."""
    if token is None:
        raise AdminDisabled("Admin calls are off: the server has no admin.token.")
    given = request.headers.getlist("authorization")
    scheme, _, credential = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    is_right = hmac.compare_digest(credential.strip().encode(), token.get_secret_value().encode())
    if scheme.lower() != "bearer" or not is_right:
        raise Unauthorized("Send the admin token as `Authorization: Bearer <token>`.")


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object of a call; `{}` where the body is empty, as clients send neither length nor type then."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise PayloadTooLarge(f"The body has more than {_MOST_BYTES:,} bytes.")
    found = uploads.parse_json(body) if body.strip() else {}
    if not isinstance(found, dict):
        raise MalformedRequest("The JSON is not an object.")
    return found
