"""An infer request of the Open Inference Protocol: its JSON, and the raw tensors behind it.

What can be judged without the model is judged when the body is read; `InferBody.read` does the rest once it is known
which version answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.config import LimitSettings
from service.errors import InvalidTensor, MalformedRequest, PayloadTooLarge
from service.messages import ImagePayload
from service.rest import json_tensors
from service.rest.json_tensors import base64_member, from_base64, is_array, members
from service.rest.v2.datatypes import NAME_OF, NUMPY_OF, array_of_bytes, array_of_elements, elements_of
from service.tensors import Array, Signature, Tensors

_MAX_TENSORS = 64  # inputs or outputs of a request
_MAX_ID_CHARACTERS = 1024
_MAX_CLASSES = 2**31 - 1
_MAX_UINT64 = 2**64 - 1
_MAX_VALUES = 2**48  # of a tensor, an empty dimension counted as one: of eight bytes each they have room in 63 bits
# Triton's own parameters of a request, and what each must be; we honour `timeout` and `binary_data_output`
_TYPES: Mapping[str, tuple[type, ...]] = {
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "sequence_end": (bool,),
    "priority": (int,),
    "timeout": (int,),
    "binary_data_output": (bool,),
}

Element = bytes | str | Any


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input. `value` is an array, or the elements of a BYTES tensor as they came: bytes, strings, `{"b64"}`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    value: Array | Sequence[Element]
    is_base64: bool = False


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output that was asked for. `binary` is None where the request's own default holds."""

    name: str
    binary: bool | None
    classes: int


@dataclass(frozen=True, slots=True)
class InferBody:
    """One request. `raw` is the body of the form that has no JSON, with the image type that it was declared as."""

    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[WantedOutput, ...]
    binary_outputs: bool
    timeout_us: int
    max_images: int
    raw: memoryview | None = None
    raw_media_type: str | None = None

    def read(self, signature: Signature) -> Tensors | tuple[ImagePayload, ...]:
        """The tensors or images for a version. Raises InvalidTensor, MalformedRequest."""
        self._check_outputs(signature)
        if self.raw is not None:
            return self._read_raw(signature, self.raw)
        if len(self.inputs) == 1 and self._is_images(self.inputs[0], signature):
            return self._images(self.inputs[0])
        return {one.name: _array(one) for one in self.inputs}

    def _check_outputs(self, signature: Signature) -> None:
        known = {spec.name for spec in signature.outputs}
        for output in self.outputs:
            if output.name not in known:
                raise InvalidTensor(
                    f"There is no output {output.name[:128]!r}; the model has {', '.join(sorted(known))}."
                )

    @staticmethod
    def _is_images(one: InputTensor, signature: Signature) -> bool:
        return one.datatype == "BYTES" and one.name == signature.image_tensor

    def _images(self, one: InputTensor) -> tuple[ImagePayload, ...]:
        assert not isinstance(one.value, np.ndarray)
        if len(one.value) != math.prod(one.shape):
            raise InvalidTensor(f"Input {one.name!r}: {len(one.value)} elements; its shape is {list(one.shape)}.")
        if not 1 <= len(one.value) <= self.max_images:
            raise InvalidTensor(f"{len(one.value)} images; a request has 1 to {self.max_images}.")
        return tuple(ImagePayload(_image(element, one.name)) for element in one.value)

    def _read_raw(self, signature: Signature, raw: memoryview) -> Tensors | tuple[ImagePayload, ...]:
        if len(signature.inputs) != 1:
            raise InvalidTensor(f"The raw form is for models with one input; this one has {len(signature.inputs)}.")
        if self.raw_media_type is not None:
            if signature.image_tensor is None:
                raise InvalidTensor("The model takes tensors: its manifest has no image preprocessing.")
            return (ImagePayload(bytes(raw), None, self.raw_media_type),)
        (spec,) = signature.inputs
        shape = [1, *spec.shape[1:]] if signature.is_batched else list(spec.shape)
        datatype = NAME_OF.get(spec.dtype, spec.dtype)
        if datatype == "BYTES":
            shape = [max(1, size) for size in shape]
            return {spec.name: array_of_elements([_text(bytes(raw), spec.name)], spec.name, tuple(shape))}
        if datatype not in NUMPY_OF:
            raise InvalidTensor(f"Input {spec.name!r} is {datatype}, which is not served.")
        if shape.count(-1) > 1:
            raise InvalidTensor(f"The raw form cannot tell the shape: the model takes {shape}.")
        fixed = math.prod(size for size in shape if size > 0) * np.dtype(spec.dtype).itemsize
        if -1 in shape:
            shape[shape.index(-1)] = len(raw) // fixed
        return {spec.name: array_of_bytes(raw, spec.name, datatype, tuple(shape))}


def parse(body: memoryview, header_length: int | None, media_type: str, limits: LimitSettings) -> InferBody:
    """An infer request's body; `header_length` is how much of it is JSON, where the client says so.

    Raises MalformedRequest, InvalidTensor, PayloadTooLarge.
    """
    if header_length == 0:
        image_type = media_type if media_type.startswith("image/") else None
        return InferBody("", (), (), True, 0, limits.max_images, body, image_type)
    split = len(body) if header_length is None else header_length
    if split > len(body):
        raise MalformedRequest(f"Inference-Header-Content-Length is {split}; the body has {len(body):,} bytes.")
    if split > limits.json_body_bytes:
        raise PayloadTooLarge(f"The JSON has more than {limits.json_body_bytes:,} bytes; send binary tensors.")
    found = members(json_tensors.parse(body[:split]), "The request")
    parameters = _parameters(found.get("parameters"), "The request")
    _check_reserved(parameters)
    inputs = _inputs(found.get("inputs"), body[split:])
    return InferBody(
        _id(found.get("id", "")),
        inputs,
        _outputs(found.get("outputs")),
        parameters.get("binary_data_output", False),
        parameters.get("timeout", 0),
        limits.max_images,
    )


def _id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_ID_CHARACTERS or not value.isprintable():
        raise MalformedRequest(f"id is not a printable string of at most {_MAX_ID_CHARACTERS} characters.")
    return value


def _parameters(found: Any, what: str) -> dict[str, Any]:
    if found is None:
        return {}
    parameters = members(found, f"{what}: parameters")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise MalformedRequest(f"{what}: parameter {name[:128]!r} is no string, number or boolean.")
    return parameters


def _check_reserved(parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if name.startswith("triton_") or name == "headers":
            raise MalformedRequest(f"Parameter {name[:128]!r} is reserved.")
        types = _TYPES.get(name)
        if types is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise MalformedRequest(f"Parameter {name!r} must be {' or '.join(one.__name__ for one in types)}.")
        if isinstance(value, int) and not 0 <= value <= _MAX_UINT64:
            raise MalformedRequest(f"Parameter {name!r} is out of range.")


def _tensors(found: Any, what: str) -> list[dict[str, Any]]:
    if not is_array(found):
        raise MalformedRequest(f"{what} is missing or not an array.")
    if len(found) > _MAX_TENSORS:
        raise MalformedRequest(f"More than {_MAX_TENSORS} {what}.")
    tensors = [members(one, f"One of {what}") for one in found]
    names = [one.get("name") for one in tensors]
    for name in names:
        if not isinstance(name, str) or not name:
            raise MalformedRequest(f"One of {what} has no name.")
        if names.count(name) > 1:
            raise MalformedRequest(f"{name[:128]!r} stands more than once in {what}.")
    return tensors


def _inputs(found: Any, tail: memoryview) -> tuple[InputTensor, ...]:
    inputs: list[InputTensor] = []
    place = 0
    tensors = _tensors(found, "inputs")
    if not tensors:
        raise MalformedRequest("inputs is empty.")
    for one in tensors:
        parameters = _parameters(one.get("parameters"), f"Input {one['name']!r}")
        size = _binary_size(parameters, one, tail[place:])
        inputs.append(_input(one, parameters, None if size is None else tail[place : place + size]))
        place += size or 0
    if place != len(tail):
        raise MalformedRequest(f"Unexpected additional input data: {len(tail) - place:,} bytes after the last tensor.")
    return tuple(inputs)


def _binary_size(parameters: Mapping[str, Any], one: Mapping[str, Any], rest: memoryview) -> int | None:
    name = one["name"]
    if any(parameter.startswith("shared_memory") for parameter in parameters):
        raise InvalidTensor(f"Input {name!r}: shared memory is not supported.")
    if "binary_data_size" not in parameters:
        if "data" not in one:
            raise MalformedRequest(f"Input {name!r} has neither data nor binary_data_size.")
        return None
    size = parameters["binary_data_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedRequest(f"Input {name!r}: binary_data_size is not an unsigned integer.")
    if "data" in one:
        raise MalformedRequest(f"Input {name!r} has both data and binary_data_size.")
    if size > len(rest):
        raise MalformedRequest(f"Input {name!r}: expecting {size - len(rest):,} additional bytes.")
    return size


def _input(one: Mapping[str, Any], parameters: Mapping[str, Any], binary: memoryview | None) -> InputTensor:
    name, datatype = one["name"], one.get("datatype")
    if not isinstance(datatype, str) or datatype not in NUMPY_OF:
        given = repr(datatype[:32]) if isinstance(datatype, str) else "missing or no string"
        raise InvalidTensor(f"Input {name!r}: datatype is {given}, not one of {', '.join(NUMPY_OF)}.")
    shape = _shape(one.get("shape"), name)
    if binary is not None:
        if datatype == "BYTES":
            return InputTensor(name, datatype, shape, elements_of(binary, name))
        return InputTensor(name, datatype, shape, array_of_bytes(binary, name, datatype, shape))
    if datatype == "BYTES":
        elements = list(json_tensors.scalars(one["data"], name))
        return InputTensor(name, datatype, shape, elements, parameters.get("content_type") == "base64")
    if datatype == "FP16":
        raise InvalidTensor(f"Input {name!r}: FP16 has no JSON form; send it as a binary tensor.")
    return InputTensor(name, datatype, shape, json_tensors.array_of(one["data"], name, NUMPY_OF[datatype], shape))


def _shape(found: Any, name: str) -> tuple[int, ...]:
    if not is_array(found) or not 1 <= len(found) <= json_tensors.MAX_RANK:
        raise InvalidTensor(f"Input {name!r}: shape is not an array of 1 to {json_tensors.MAX_RANK} integers.")
    shape: tuple[Any, ...] = tuple(found)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise InvalidTensor(f"Input {name!r}: shape holds something that is no unsigned integer.")
    if math.prod(size or 1 for size in shape) > _MAX_VALUES:
        raise InvalidTensor(f"Input {name!r}: its shape makes more values than any array can have.")
    return shape


def _outputs(found: Any) -> tuple[WantedOutput, ...]:
    return () if found is None else tuple(_output(one) for one in _tensors(found, "outputs"))


def _output(one: Mapping[str, Any]) -> WantedOutput:
    name = one["name"]
    parameters = _parameters(one.get("parameters"), f"Output {name!r}")
    if any(parameter.startswith("shared_memory") for parameter in parameters):
        raise InvalidTensor(f"Output {name!r}: shared memory is not supported.")
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise MalformedRequest(f"Output {name!r}: binary_data is neither true nor false.")
    classes = parameters.get("classification")
    if classes is None:
        return WantedOutput(name, binary, 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= _MAX_CLASSES:
        raise MalformedRequest(f"Output {name!r}: classification is not a number of classes from 1 on.")
    return WantedOutput(name, binary, classes)


def _array(one: InputTensor) -> Array:
    if isinstance(one.value, np.ndarray):
        return one.value
    elements = [_text(_decoded(element, one), one.name) for element in one.value]
    return array_of_elements(elements, one.name, one.shape)


def _decoded(element: Element, one: InputTensor) -> Element:
    text = base64_member(element)
    if text is None and not one.is_base64:
        return element
    return from_base64(element if text is None else text, f"Input {one.name!r}: an element")


def _text(element: Element, name: str) -> str:
    """An element of a tensor of strings, as the engine takes it."""
    try:
        return element if isinstance(element, str) else element.decode("utf-8")
    except (UnicodeDecodeError, AttributeError):
        raise InvalidTensor(f"Input {name!r}: an element is not UTF-8 text.") from None


def _image(element: Element, name: str) -> bytes:
    """An encoded image: bytes, or base64 in JSON, in one of two ways."""
    if isinstance(element, bytes):
        return element
    text = base64_member(element)
    return from_base64(element if text is None else text, f"Input {name!r}: an image")
