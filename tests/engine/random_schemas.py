"""Random JSON schemas, all of them satisfiable, from a seed."""

from __future__ import annotations

import random
from typing import Any

NAMES = (
    "a",
    "id",
    "name",
    "Größe",
    "b-c",
    "d.e",
    'quo"te',
    "back\\slash",
    "x y",
    "日本",
    "n",
    "type",
    "format",
    "$ref",
)
PATTERNS = ("^[a-c]{2,5}$", "^(ab|cd)+$", "x", "^a*b$", r"^\d{3}-\d{4}$", "^[^a]*$", "^[A-Z][a-z]*$", "é|ü")
FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "email", "no-such-format")


def random_tool_schema(random_: random.Random) -> dict[str, Any]:
    """A schema of arguments: an object, with definitions that refer to themselves and to each other."""
    writer = _Writer(random_)
    schema = writer.object(3)
    if writer.refers:
        schema["$defs"] = {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                    "more": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 3},
                },
                "required": random_.choice([[], ["value"], ["value", "left"]]),
            },
            "list": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "boolean"}]}},
        }
    return schema


class _Writer:
    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.refers = False

    def any(self, depth: int) -> dict[str, Any]:
        kinds = [self.string, self.number, self.integer, self.enum, self.plain]
        if depth:
            kinds += [self.object, self.array, self.any_of, self.reference, self.all_of]
        kind = self.random.choice(kinds)
        return kind(depth - 1) if depth and kind in (self.object, self.array, self.any_of, self.all_of) else kind(depth)

    def object(self, depth: int) -> dict[str, Any]:
        names = self.random.sample(NAMES, self.random.randint(0, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth) for name in names}}
        if self.random.random() < 0.7:
            schema["required"] = [name for name in names if self.random.random() < 0.6]
        further = self.random.randrange(5)
        if further < 2:
            schema["additionalProperties"] = False
        elif further == 2:
            schema["additionalProperties"] = self.any(0)
        elif further == 3:
            schema["additionalProperties"] = True
        if self.random.random() < 0.1:
            schema["patternProperties"] = {"^zz": self.any(0)}
        return schema

    def array(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        if self.random.random() < 0.8:
            schema["items"] = self.any(depth)
        if self.random.random() < 0.4:
            schema["minItems"] = self.random.randint(0, 4)
        if self.random.random() < 0.4:
            schema["maxItems"] = schema.get("minItems", 0) + self.random.randint(0, 3)
        if self.random.random() < 0.15:
            schema["prefixItems"] = [self.any(0), self.any(0)]
        return schema

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.any(depth) for _ in range(self.random.randint(1, 3))]}

    def all_of(self, depth: int) -> dict[str, Any]:
        return {"allOf": [self.string_of_length(), {"type": "string"}]}

    def reference(self, depth: int) -> dict[str, Any]:
        self.refers = True
        return {"$ref": self.random.choice(["#/$defs/tree", "#/$defs/list"])}

    def string(self, depth: int) -> dict[str, Any]:
        choice = self.random.randrange(5)
        if choice == 0:
            return {"type": "string", "pattern": self.random.choice(PATTERNS)}
        if choice == 1:
            return {"type": "string", "format": self.random.choice(FORMATS)}
        if choice == 2:
            return self.string_of_length()
        return {"type": "string", "description": "some text"}

    def string_of_length(self) -> dict[str, Any]:
        shortest = self.random.randint(0, 30)
        return {"type": "string", "minLength": shortest, "maxLength": shortest + self.random.randint(0, 10)}

    def integer(self, depth: int) -> dict[str, Any]:
        lowest = self.random.randint(-1000, 1000)
        choice = self.random.randrange(4)
        if choice == 0:
            return {"type": "integer", "minimum": lowest, "maximum": lowest + self.random.randint(0, 500)}
        if choice == 1:
            return {"type": "integer", "exclusiveMinimum": lowest}
        if choice == 2:
            return {"type": "integer", "multipleOf": self.random.choice([2, 3, 5, 7, 12])}
        return {"type": "integer"}

    def number(self, depth: int) -> dict[str, Any]:
        lowest = self.random.uniform(-100, 100)
        choice = self.random.randrange(3)
        if choice == 0:
            return {"type": "number", "minimum": round(lowest, 3), "exclusiveMaximum": round(lowest + 10, 2)}
        if choice == 1:
            return {"type": "number", "exclusiveMinimum": round(lowest, 1)}
        return {"type": "number"}

    def enum(self, depth: int) -> dict[str, Any]:
        values: list[Any] = ["red", "green", 3, None, True, 'a "quoted" \\ text', "日本", {"k": [1, "é"]}, "", -2.5]
        if self.random.random() < 0.3:
            return {"const": self.random.choice(values)}
        return {"enum": self.random.sample(values, self.random.randint(1, 5))}

    def plain(self, depth: int) -> dict[str, Any]:
        return self.random.choice([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {}])
