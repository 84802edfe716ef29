"""Holds values to the schemas of an OpenAPI document.

A validator for the few JSON Schema keywords that the document uses; one it does not know is an error, so that nothing
is passed over in silence.
"""

from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_NOTES = frozenset({"title", "description", "default", "example", "examples", "format"})
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
}


def problems(document: Schema, schema: Schema, value: Any, place: str = "$") -> list[str]:
    """Where `value` is not what `schema` says; empty where it fits."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in _NOTES:
            continue
        if keyword == "$ref":
            found += problems(document, resolve(document, wanted), value, place)
        elif keyword == "anyOf":
            if all(problems(document, choice, value, place) for choice in wanted):
                found.append(f"{place}: {value!r} fits none of {wanted}")
        elif keyword == "type":
            if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
                return [f"{place}: {value!r} is no {wanted}"]
        elif keyword == "const":
            found += [] if value == wanted else [f"{place}: {value!r} is not {wanted!r}"]
        elif keyword == "enum":
            found += [] if value in wanted else [f"{place}: {value!r} is not one of {wanted}"]
        elif keyword == "required":
            found += [f"{place}: {name} is missing" for name in wanted if name not in value]
        elif keyword == "properties":
            for name in wanted.keys() & value.keys():
                found += problems(document, wanted[name], value[name], f"{place}.{name}")
        elif keyword == "additionalProperties" and wanted is False:
            found += [f"{place}: {name} is not in the schema" for name in value.keys() - schema["properties"].keys()]
        elif keyword in _BOUNDS:
            found += [] if _BOUNDS[keyword](value, wanted) else [f"{place}: {value!r} breaks {keyword} {wanted}"]
        elif keyword == "items":
            for index, item in enumerate(value):
                found += problems(document, wanted, item, f"{place}[{index}]")
        else:
            raise NotImplementedError(f"{place}: schema keyword {keyword!r}: teach it to tests/support/openapi.py")
    return found


def resolve(document: Schema, reference: str) -> Schema:
    """What `#/components/schemas/Name` names. Raises KeyError where there is no such thing."""
    assert reference.startswith("#/"), reference
    found: Any = document
    for part in reference[2:].split("/"):
        found = found[part]
    return found  # type: ignore[no-any-return]  # a JSON object


def references(value: Any) -> set[str]:
    """Every `$ref` anywhere in a document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(references(item) for item in value))
    return set()
