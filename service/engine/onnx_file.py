"""What an ONNX file asks for, read from its bytes before any runtime sees them.

Walks the protobuf wire format itself: every graph, subgraph and function, every attribute and every tensor in them,
sparse ones too. It visits whatever a parser could take for such a part, so that what is refused here cannot be hidden
from it by an odd encoding; what it cannot read it refuses. Field numbers are those of onnx.proto, which never change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from service.errors import ModelLoadError

MAX_NODES = 100_000
MAX_TENSOR_BYTES = 16 << 30  # that the file announces, stored or made while loading
_MAX_FIELDS = 5_000_000  # some 10 s of walking; a network of 100,000 nodes has 2 million
_MAX_DEPTH = 100  # of messages in messages, as protobuf's own parsers
_NESTED_LOCATION = ("/", "\\", "\0")
# "" is ONNX itself. The contributed operators are ONNX Runtime's own, built in.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
_FORBIDDEN = frozenset(
    {"PyOp", "PythonOp", "PythonOpGrad", "EPContext"}
)  # run Python, or load files named in the graph
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
_EXTERNAL = 1  # TensorProto.DataLocation

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class ExternalData:
    """A tensor's bytes in another file. `length` None is up to its end."""

    location: str
    offset: int
    length: int | None


@dataclass(slots=True)
class OnnxFile:
    """What was found."""

    nodes: int = 0
    tensor_bytes: int = 0
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: list[ExternalData] = field(default_factory=list)

    def check(self) -> None:
        """Raises ModelLoadError on what no model of ours may ask for."""
        if self.nodes > MAX_NODES:
            raise ModelLoadError(f"the graph has {self.nodes:,} nodes; {MAX_NODES:,} are allowed", gate="size")
        if self.tensor_bytes > MAX_TENSOR_BYTES:
            raise ModelLoadError(
                f"the graph's tensors have {self.tensor_bytes:,} bytes; {MAX_TENSOR_BYTES:,} are allowed", gate="size"
            )
        for domain, name in sorted(self.operators - self.functions):
            if domain not in _DOMAINS or name in _FORBIDDEN:
                raise ModelLoadError(
                    f"operator {name[:64]!r} of domain {domain[:64]!r} is not allowed: "
                    "export with ONNX's own operators, custom ones are never loaded",
                    gate="operators",
                )

    def external_files(self) -> set[str]:
        return {tensor.location for tensor in self.external}

    def check_external(self, name: str, size: int) -> None:
        """That every tensor in file `name` lies inside of its `size` bytes. Raises ModelLoadError."""
        for tensor in self.external:
            if tensor.location == name and tensor.offset + (tensor.length or 0) > size:
                raise ModelLoadError(
                    f"external data {name!r} ends at byte {size:,}; a tensor reaches to "
                    f"{tensor.offset + (tensor.length or 0):,}: copy the file again",
                    gate="external_data",
                )


def inspect(content: bytes, name: str = "model.onnx") -> OnnxFile:
    """Walk a file, which faults call `name`.

    Raises ModelLoadError where it is no ONNX, or refers to files beyond its own folder.
    """
    if not content:
        raise ModelLoadError(f"{name} is empty: copy it again", gate="files")
    walk = _Walk()
    try:
        walk.model(memoryview(content))
    except (IndexError, _Damaged):
        raise ModelLoadError(f"{name} is no ONNX, or damaged: copy it again", gate="files") from None
    return walk.found


class _Damaged(Exception):
    pass


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value = byte & 0x7F
    for further in range(1, 10):
        byte = data[place + further]
        value |= (byte & 0x7F) << 7 * further
        if byte < 0x80:
            return value, place + further + 1
    raise _Damaged


class _Walk:
    def __init__(self) -> None:
        self.found = OnnxFile()
        self._fields_left = _MAX_FIELDS
        self._depth = 0
        self._shapes: dict[str, list[int]] = {}  # of small integer constants, by name
        self._made: list[tuple[str, int]] = []  # (name of the shape, item bytes) of tensors made while loading

    def model(self, data: memoryview) -> None:
        has_graph = False
        for number, value in self._messages(data):
            if number == 7:
                has_graph = True
                self._graph(value)
            elif number == 25:
                self._function(value)
            elif number == 20:  # training: two more graphs
                for inner, graph in self._messages(value):
                    if inner in (1, 2):
                        self._graph(graph)
        if not has_graph:
            raise _Damaged
        for name, item_bytes in self._made:
            if name in self._shapes:
                self._count(self._shapes[name], item_bytes)

    def _graph(self, data: memoryview) -> None:
        for number, value in self._messages(data):
            if number == 1:
                self._node(value)
            elif number == 5:
                self._tensor(value)
            elif number == 15:
                self._sparse(value)

    def _function(self, data: memoryview) -> None:
        name = domain = ""
        for number, value in self._messages(data):
            if number == 1:
                name = _text(value)
            elif number == 10:
                domain = _text(value)
            elif number == 7:
                self._node(value)
            elif number == 11:
                self._attribute(value)
        self.found.functions.add((domain, name))

    def _node(self, data: memoryview) -> None:
        operator = domain = ""
        inputs: list[str] = []
        output = ""
        item_bytes = 4
        self.found.nodes += 1
        for number, value in self._messages(data):
            if number == 1:
                inputs.append(_text(value))
            elif number == 2:
                output = output or _text(value)
            elif number == 4:
                operator = _text(value)
            elif number == 7:
                domain = _text(value)
            elif number == 5:
                item_bytes = self._attribute(value, output) or item_bytes
        self.found.operators.add((domain, operator))
        if operator == "ConstantOfShape" and inputs:
            self._made.append((inputs[0], item_bytes))
        elif operator == "Expand" and len(inputs) > 1:
            self._made.append((inputs[1], item_bytes))

    def _attribute(self, data: memoryview, output: str = "") -> int:
        """Bytes of an item of its tensor, 0 without one. `output` is the name of what a constant node makes."""
        item_bytes = 0
        for number, value in self._messages(data):
            if number in (5, 10):
                item_bytes = self._tensor(value, output)
            elif number in (6, 11):
                self._graph(value)
            elif number in (22, 23):
                self._sparse(value)
        return item_bytes

    def _sparse(self, data: memoryview) -> None:
        for number, value in self._messages(data):
            if number in (1, 2):
                self._tensor(value)

    def _tensor(self, data: memoryview, name: str = "") -> int:
        dims: list[int] = []
        numbers: list[int] = []
        raw: memoryview | None = None
        kind = 1
        is_external = False
        entries: list[tuple[str, str]] = []
        for number, value in self._fields(data):
            if number == 1:
                dims += _integers(value)
            elif number == 2 and isinstance(value, int):
                kind = value & 0xFFFFFFFF
            elif number == 7:
                numbers += _integers(value, most=8)
            elif number == 8 and isinstance(value, memoryview):
                name = name or _text(value)
            elif number == 9 and isinstance(value, memoryview):
                raw = value
            elif number == 13 and isinstance(value, memoryview):
                entries.append(self._entry(value))
            elif number == 14 and isinstance(value, int):
                is_external = is_external or value & 0xFFFFFFFF == _EXTERNAL
        if is_external or entries:
            self.found.external.append(_external(entries))
        item_bytes = _ITEM_BYTES.get(kind, 1)
        self._count(dims, item_bytes)
        if kind == 7 and len(dims) == 1 and dims[0] <= 8:
            if raw is not None:
                numbers = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
            self._shapes[name] = numbers
        return item_bytes

    def _entry(self, data: memoryview) -> tuple[str, str]:
        key = value = ""
        for number, text in self._messages(data):
            if number == 1:
                key = _text(text)
            elif number == 2:
                value = _text(text)
        return key, value

    def _count(self, dims: list[int], item_bytes: int) -> None:
        count = item_bytes
        for size in dims:
            if size < 0:
                raise ModelLoadError("a tensor of the graph has a negative dimension", gate="size")
            count *= size
        self.found.tensor_bytes += count

    def _messages(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The fields that have a length: messages, text, bytes."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Damaged
        for number, value in self._fields(data):
            if isinstance(value, memoryview):
                yield number, value
        self._depth -= 1

    def _fields(self, data: memoryview) -> Iterator[tuple[int, Value]]:
        """(number, value) of every field of a message: an integer, or the bytes of what has a length."""
        place, end = 0, len(data)
        while place < end:
            self._fields_left -= 1
            if not self._fields_left:
                raise ModelLoadError(f"the graph has more than {_MAX_FIELDS:,} fields", gate="size")
            key, place = _varint(data, place)
            if key >= 1 << 32:  # some parsers would look at its lower half only
                raise _Damaged
            number, wire = key >> 3, key & 7
            if wire == 0:
                integer, place = _varint(data, place)
                yield number, integer & 0xFFFFFFFFFFFFFFFF
            elif wire == 2:
                size, start = _varint(data, place)
                place = start + size
                if place > end:
                    raise _Damaged
                yield number, data[start:place]
            elif wire in (1, 5):
                place += 8 if wire == 1 else 4
                if place > end:
                    raise _Damaged
            else:  # groups: no version of ONNX has them
                raise _Damaged


def _integers(value: Value, most: int = 64) -> list[int]:
    """Of a repeated field, packed or not; signed."""
    if isinstance(value, int):
        found = [value]
    else:
        found, place = [], 0
        while place < len(value) and len(found) <= most:
            integer, place = _varint(value, place)
            found.append(integer & 0xFFFFFFFFFFFFFFFF)
    return [integer - (1 << 64) if integer >= 1 << 63 else integer for integer in found]


def _text(data: memoryview) -> str:
    return bytes(data).decode("utf-8", "backslashreplace")


def _external(entries: list[tuple[str, str]]) -> ExternalData:
    """Raises ModelLoadError on what is not a plain file name beside the model and a range in it."""
    given = dict(entries)
    unknown = set(given) - _EXTERNAL_KEYS
    location = given.get("location", "")
    problem = ""
    if unknown:
        problem = f"has the key {min(unknown)[:32]!r}"
    elif len(given) < len(entries):
        problem = "says something twice"
    elif not location or location in (".", "..") or any(sign in location for sign in _NESTED_LOCATION):
        problem = f"is at {location[:64]!r}, which is not a plain file name"
    elif not all(_is_count(given.get(key, "0")) for key in ("offset", "length")):
        problem = "has an offset or a length that is no number of bytes"
    if problem:
        raise ModelLoadError(
            f"a tensor's external data {problem}: put it into a file beside model.onnx", gate="external_data"
        )
    length = int(given["length"]) if "length" in given else None
    return ExternalData(location, int(given.get("offset", "0")), length)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18
