"""Jobs and records, each described once as a typed model; ``python -m kvvideo.outputs.schema`` writes JSON Schemas.

A model is a ``TypedDict``. A ``Rule`` in ``Annotated`` says what its Python type cannot.
"""

import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]

_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    dict: "object",
}


class Rule:
    """Keywords of JSON Schema for an annotated type.

    Args:
        name: if given, the type gets a definition of its own, called so.
        keywords: as JSON Schema has them.
    """

    def __init__(self, name: str = "", **keywords: Any) -> None:
        self.name, self.keywords = name, keywords


def document(kind: Any, closed: bool, **head: Any) -> Schema:
    """Return the JSON Schema of a model, or of a union of models.

    Args:
        kind: the model.
        closed: allow no other fields than those of the models.
        head: keywords of the whole.
    """
    parts = _Parts(closed)
    body = parts.model(kind) if is_typeddict(kind) else {"oneOf": [parts.of(one) for one in get_args(kind)]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **head, **body, "$defs": parts.named}


class _Parts:
    """Makes schemas of types; those with a name are in ``named``, and others refer to them."""

    def __init__(self, closed: bool) -> None:
        self.named: dict[str, Schema] = {}
        self._closed = {"additionalProperties": False} if closed else {}

    def model(self, kind: Any) -> Schema:
        """Return the schema of a ``TypedDict``."""
        fields = get_type_hints(kind, include_extras=True)
        return {
            **({"description": kind.__doc__} if kind.__doc__ else {}),
            "type": "object",
            "required": [name for name in fields if name in kind.__required_keys__],
            **self._closed,
            "properties": {name: self.of(field) for name, field in fields.items()},
        }

    def of(self, kind: Any) -> Schema:
        """Return the schema of any type."""
        origin, args = get_origin(kind), get_args(kind)
        if is_typeddict(kind):
            found = self._refer(re.sub("(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(), self.model(kind))
        elif origin is NotRequired:
            found = self.of(args[0])
        elif origin is Annotated:
            found = self.of(args[0])
            for rule in kind.__metadata__:
                found |= rule.keywords
                found = self._refer(rule.name, found) if rule.name else found
        elif origin is Literal:
            found = {"const": args[0]} if len(args) == 1 else {"enum": [*args]}
        elif origin in (Union, UnionType):
            some = [self.of(one) for one in args]
            simple = all(one.keys() == {"type"} for one in some)
            found = {"type": [one["type"] for one in some]} if simple else {"anyOf": some}
        elif origin is list:
            found = {"type": "array", "items": self.of(args[0])}
        elif origin is dict and args[1] is not Any:
            found = {"type": "object", "additionalProperties": self.of(args[1])}
        else:
            found = {"type": _TYPES[origin or kind]}
        return found

    def _refer(self, name: str, schema: Schema) -> Schema:
        self.named[name] = schema
        return {"$ref": f"#/$defs/{name}"}
