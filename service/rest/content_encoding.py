"""gzip and deflate, both ways: what comes in is capped while it inflates, what goes out is as the client prefers.

"deflate" is the zlib format, as RFC 9110 has it.
"""

import zlib

from service.errors import MalformedRequest, PayloadTooLarge, UnsupportedContentEncoding

ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # by preference -> zlib's window bits
_IDENTITY = ("identity", "")
_LEVEL = 1  # tensors shrink little, whatever is spent on them


def encoding_of(header: str) -> str | None:
    """The content encoding of a body; None where it is not compressed. Raises UnsupportedContentEncoding."""
    name = header.strip().lower()
    if name in _IDENTITY:
        return None
    if name not in ENCODINGS:
        raise UnsupportedContentEncoding(f"Content-Encoding {name[:64]!r} is not taken; send gzip or deflate.")
    return name


def inflated(data: memoryview, encoding: str, limit_bytes: int) -> bytes:
    """Blocking. Raises MalformedRequest where the data is damaged, PayloadTooLarge as soon as it is."""
    packer = zlib.decompressobj(ENCODINGS[encoding])
    try:
        plain = packer.decompress(data, limit_bytes + 1)
    except zlib.error:
        raise MalformedRequest(f"The body is not {encoding}.") from None
    if len(plain) > limit_bytes:
        raise PayloadTooLarge(f"The body has more than {limit_bytes:,} bytes when inflated.")
    if not packer.eof:
        raise MalformedRequest(f"The {encoding} body ends before its end.")
    if packer.unused_data:
        raise MalformedRequest(f"There is data after the end of the {encoding} body.")
    return plain


def deflated(data: bytes, encoding: str) -> bytes:
    """Blocking."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, ENCODINGS[encoding])
    return packer.compress(data) + packer.flush()


def accepted(header: str) -> str | None:
    """The encoding that an Accept-Encoding header prefers, of those we have; None for none at all."""
    weights: dict[str, float] = {}
    for entry in header.lower().split(",")[:32]:
        name, _, parameter = (part.strip() for part in entry.partition(";"))
        try:
            weights[name] = float(parameter.removeprefix("q=")) if parameter else 1.0
        except ValueError:
            weights[name] = 0.0
    weight_of = {name: weights.get(name, weights.get("*", 0.0)) for name in ENCODINGS}
    best = max(weight_of, key=lambda name: weight_of[name])
    return best if weight_of[best] > 0 and weight_of[best] >= weights.get("identity", 0.0) else None
