"""A request's body to images: raw bytes, multipart, or base64 in JSON.

Owns the limits on bytes and parts while they arrive, and what a broken body is told. Knows no image format.
"""

import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from functools import lru_cache
from json import JSONDecodeError, loads
from typing import Any

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import Request

from service.config import LimitSettings
from service.errors import (
    EmptyBody,
    InvalidParameter,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from service.messages import ImagePayload
from service.pipeline import Ticket
from service.rest.connection import next_piece
from service.rest.context import header_values
from service.rest.errors import invalid_parameter
from service.rest.schemas import ClassifyBody

_MAX_BOUNDARY_BYTES = 70  # RFC 2046
_MAX_NAME_CHARACTERS = 255
_MAX_JSON_DEPTH = 32


@dataclass(frozen=True, slots=True)
class ContentType:
    """A parsed Content-Type header."""

    media_type: str
    parameters: dict[str, str]


def content_type(request: Request) -> ContentType:
    """The request's content type. Raises UnsupportedMediaType where there is none or it cannot be read."""
    values, encodings = [], []
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            values.append(value)
        elif name == b"content-encoding":
            encodings.append(value)
    if len(values) != 1:
        raise UnsupportedMediaType(
            "Send exactly one Content-Type: an image type, multipart/form-data or application/json."
        )
    for encoding in encodings:
        if encoding.strip().lower() not in (b"identity", b""):
            raise UnsupportedMediaType("Content-Encoding is not supported here; images are compressed already.")
    return _parsed(values[0])


@lru_cache(maxsize=64)  # a service's clients send the same few
def _parsed(given: bytes) -> ContentType:
    value = given.decode("latin-1")
    if len(value) > 512 or "\0" in value:
        raise UnsupportedMediaType("The Content-Type is not well-formed.")
    if ";" not in value:
        return ContentType(value.strip().lower(), {})
    message = Message()
    message["content-type"] = value
    parameters = {str(name).lower(): str(given) for name, given in (message.get_params() or [])[1:]}
    return ContentType(value.split(";", 1)[0].strip().lower(), parameters)


async def read_body(request: Request, ticket: Ticket, limit_bytes: int) -> bytes:
    """The whole body, at most `limit_bytes`; `ticket` accounts for it as it arrives.

    Raises PayloadTooLarge (before reading where Content-Length says so), EmptyBody, Overloaded, and what
    `next_piece` raises.
    """
    for declared in header_values(request.scope, b"content-length"):
        if int(declared) > limit_bytes:  # a number, or the parser had refused it
            raise PayloadTooLarge(f"The body has {int(declared):,} bytes; the limit is {limit_bytes:,}.")
    body, more = b"", True
    chunks: list[bytes] = []
    size = 0
    while more:
        body, more = await next_piece(request)
        size += len(body)
        if size > limit_bytes:
            raise PayloadTooLarge(f"The body has more than {limit_bytes:,} bytes.")
        ticket.grow(len(body))
        chunks.append(body)
    if size == 0:
        raise EmptyBody("The body is empty; send an image.")
    ticket.body_received()
    return body if len(chunks) == 1 else b"".join(chunks)


# Multipart


@dataclass(slots=True)
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)


class _PartCollector:
    """Callbacks of the multipart parser; keeps what belongs to each part."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[_Part] = []
        self.is_complete = False
        self._max_parts = max_parts
        self._name = b""
        self._value = b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise PayloadTooLarge(f"More than {self._max_parts} parts.")
        self.parts.append(_Part())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = self._name.decode("latin-1").lower()
        self.parts[-1].headers[name] = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data.append(data[start:end])

    def _end(self) -> None:
        self.is_complete = True


def images_of_multipart(body: bytes, boundary: str | None, limits: LimitSettings) -> tuple[ImagePayload, ...]:
    """The parts named `image`, in order. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    if not boundary:
        raise MalformedRequest("multipart/form-data needs a boundary parameter.")
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise MalformedRequest(f"The multipart boundary is longer than {_MAX_BOUNDARY_BYTES} characters.")
    if not body.startswith(b"--"):
        raise MalformedRequest("The multipart body does not start with its boundary.")
    collector = _PartCollector(limits.max_images)
    try:
        MultipartParser(boundary.encode("latin-1", "replace"), collector.callbacks()).write(body)
    except FormParserError as error:
        raise MalformedRequest(f"The multipart body is broken: {error}.") from None
    if not collector.is_complete:
        raise MalformedRequest("The multipart body ends before its last boundary.")
    if len(body) - body.rfind(b"--") > len("--\r\n"):
        raise MalformedRequest("There is data after the last boundary of the multipart body.")
    images = tuple(_image_of_part(part) for part in collector.parts)
    if not images:
        raise InvalidParameter('There is no part named "image".')
    return images


def _image_of_part(part: _Part) -> ImagePayload:
    disposition = Message()
    disposition["content-disposition"] = part.headers.get("content-disposition", "")
    name = disposition.get_param("name", header="content-disposition")
    if name != "image":
        raise InvalidParameter(f"There is a part named {str(name)[:64]!r}; name the parts with images 'image'.")
    if part.headers.get("content-transfer-encoding", "binary").strip().lower() not in ("binary", "8bit", "7bit"):
        raise MalformedRequest("Content-Transfer-Encoding is not supported; send the bytes as they are.")
    file_name = disposition.get_filename()
    media_type = part.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    declared = None if media_type in ("", "application/octet-stream") else media_type
    return ImagePayload(b"".join(part.data), file_name[:_MAX_NAME_CHARACTERS] if file_name else None, declared)


# JSON


def parse_classify_body(body: bytes, limits: LimitSettings) -> ClassifyBody:
    """`{"images": [{"b64": ..., "name": ...}], "top_k": ...}`. Raises MalformedRequest, InvalidParameter."""
    value = parse_json(body)
    if isinstance(value, dict) and isinstance(value.get("images"), list) and len(value["images"]) > limits.max_images:
        raise PayloadTooLarge(f"{len(value['images'])} images; at most {limits.max_images} a request.")
    try:
        return ClassifyBody.model_validate(value)
    except ValidationError as error:
        raise invalid_parameter(error.errors(include_url=False, include_input=False)) from None


def images_of_json(body: ClassifyBody, limits: LimitSettings) -> tuple[ImagePayload, ...]:
    """Decode the base64 of each image. Raises MalformedRequest, PayloadTooLarge (before decoding)."""
    images = []
    for index, image in enumerate(body.images):
        if len(image.b64) // 4 * 3 > limits.image_bytes + 3:
            raise PayloadTooLarge(f"images.{index}: more than {limits.image_bytes:,} bytes.")
        if image.b64.endswith("==="):
            raise MalformedRequest(f"images.{index}.b64 is not base64 (RFC 4648): too much padding.")
        try:
            data = binascii.a2b_base64(image.b64, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedRequest(f"images.{index}.b64 is not base64 (RFC 4648): {error}.") from None
        if not data:
            raise MalformedRequest(f"images.{index}.b64 is empty.")
        images.append(ImagePayload(data, image.name))
    return tuple(images)


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded depth. Raises MalformedRequest."""
    try:
        value = loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedRequest("The JSON is not UTF-8.") from None
    except JSONDecodeError as error:
        raise MalformedRequest(f"The JSON is broken at character {error.pos}: {error.msg}.") from None
    except (ValueError, RecursionError):
        raise MalformedRequest("The JSON holds a value that cannot be read.") from None
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedRequest("The JSON has an object with a key twice.")
    return value


def _refuse_constant(name: str) -> Any:
    raise MalformedRequest(f"{name} is not JSON.")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_JSON_DEPTH):
        level = [child for container in level for child in _children(container)]
        if not level:
            return
    raise MalformedRequest(f"The JSON is nested deeper than {_MAX_JSON_DEPTH} levels.")


def _children(container: Any) -> list[Any]:
    values = container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()
    return [value for value in values if isinstance(value, dict | list)]
