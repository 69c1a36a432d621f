"""JSON schemas (draft 2020-12) as regular expressions over JSON texts (RFC 8259), for constrained decoding.

A schema that fixes how deep its values nest describes a regular language; one that refers to itself is unrolled so many times.
Properties come in the schema's order and only those it names; one space is allowed where JSON allows whitespace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.reference.decoding._automaton import (
    EMPTY,
    NOTHING,
    Alt,
    Cat,
    Chars,
    Node,
    Repeat,
    literal,
    parse,
    union,
    without,
)

_ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "deprecated",
}
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
}

SPACE = Repeat(Chars(((32, 32),)), 0, 1)
COMMA = Cat((SPACE, literal(","), SPACE))
_MUST_ESCAPE = ((0, 31), (34, 34), (92, 92))
_SHORT = {34: '"', 92: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
_PLAIN = Chars(without(_MUST_ESCAPE))
CHARACTER = Alt((_PLAIN, parse(r'\\["\\/bfnrt]'), parse(r"\\u[0-9a-fA-F]{4}")))
INTEGER = parse("-?(0|[1-9][0-9]*)")
NUMBER = parse(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


def schema_expression(schema: Any, *, recursion: int = 3) -> Node:
    """Return the expression of all JSON texts that a schema allows, as far as `recursion` goes.

    `oneOf` counts as `anyOf`. A value without a schema is any JSON value that nests no deeper than `recursion`. A reference
    may be inside itself `recursion` times; where a value would have to go deeper, there is none.

    Raises:
        ValueError: a keyword that is not supported, a reference that leads nowhere, or a value no schema can have.
    """
    return _Reader(schema, recursion).value(schema, {}, "#")


@dataclass(frozen=True)
class _Reader:
    whole: Any
    recursion: int

    def value(self, schema: Any, inside: Mapping[str, int], where: str) -> Node:
        """The expression of one schema; `inside` counts the references being unrolled."""
        if schema is True or schema == {}:
            return self.anything(self.recursion)
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise ValueError(f"{where}: {schema!r} is no schema")
        keys = set(schema) - _ANNOTATIONS
        if "$ref" in keys:
            self.only(keys, {"$ref"}, where)
            return self.reference(schema["$ref"], inside, where)
        for keyword in ("anyOf", "oneOf"):
            if keyword in keys:
                self.only(keys, {keyword}, where)
                return Alt(tuple(self.value(s, inside, f"{where}/{keyword}/{i}") for i, s in enumerate(schema[keyword])))
        if "enum" in keys or "const" in keys:
            self.only(keys, {"enum", "const", "type"}, where)
            values = schema["enum"] if "enum" in keys else [schema["const"]]
            return Alt(tuple(exactly(value) for value in values))
        kinds = schema.get("type", list(_KEYWORDS) if not keys else [k for k in _KEYWORDS if keys & _KEYWORDS[k]])
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        unknown = [kind for kind in kinds if kind not in _KEYWORDS]
        if unknown:
            raise ValueError(f"{where}/type: {unknown[0]!r} is none of {', '.join(_KEYWORDS)}")
        self.only(keys, set().union(*(_KEYWORDS[kind] for kind in kinds)) | {"type"}, where)
        return Alt(tuple(self.typed(kind, schema, inside, where) for kind in kinds))

    def typed(self, kind: str, schema: Mapping[str, Any], inside: Mapping[str, int], where: str) -> Node:
        """One type's values."""
        if kind == "object":
            return self.object(schema, inside, where)
        if kind == "array":
            return self.array(schema, inside, where)
        if kind == "string":
            return self.string(schema, where)
        plain = {"integer": INTEGER, "number": NUMBER, "boolean": parse("true|false"), "null": literal("null")}
        return plain[kind]

    def object(self, schema: Mapping[str, Any], inside: Mapping[str, int], where: str) -> Node:
        """Properties in order, each that is not required with its comma or not at all."""
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        if missing := required - set(properties):
            raise ValueError(f"{where}/required: {sorted(missing)[0]!r} is no property")
        more = schema.get("additionalProperties", not properties)
        if more is not False and properties and "additionalProperties" in schema:
            raise ValueError(f"{where}/additionalProperties: supported beside properties only as false")
        if more is not False and not properties:
            value = (
                self.anything(self.recursion - 1) if more is True else self.value(more, inside, f"{where}/additionalProperties")
            )
            member = Cat((quoted(Repeat(CHARACTER, 0, None)), SPACE, literal(":"), SPACE, value))
            return listed("{", member, 0, None, "}")
        members = [
            (
                Cat((exactly(name), SPACE, literal(":"), SPACE, self.value(s, inside, f"{where}/properties/{name}"))),
                name in required,
            )
            for name, s in properties.items()
        ]
        begun: Node = EMPTY  # what may follow once a property stands there, from the last one back
        fresh: list[Node] = []  # what may stand first
        for member, needed in reversed(members):
            fresh = [Cat((member, begun)), *([] if needed else fresh)]
            with_comma = Cat((COMMA, member, begun))
            begun = with_comma if needed else Alt((with_comma, begun))
        return bracketed("{", Alt(tuple(fresh)) if fresh else None, "}", or_nothing=not required)

    def array(self, schema: Mapping[str, Any], inside: Mapping[str, int], where: str) -> Node:
        """Items with commas between them."""
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        prefix = [self.value(s, inside, f"{where}/prefixItems/{i}") for i, s in enumerate(schema.get("prefixItems", ()))]
        items = schema.get("items", True)
        if most is not None and most < least:
            raise ValueError(f"{where}: maxItems {most} is below minItems {least}")
        if not prefix:
            item = self.anything(self.recursion - 1) if items is True else self.value(items, inside, f"{where}/items")
            return listed("[", item, least, most, "]")
        if items is not False or least != len(prefix):
            raise ValueError(f"{where}/prefixItems: supported only with items false and minItems {len(prefix)}")
        return bracketed("[", _joined(prefix), "]")

    def string(self, schema: Mapping[str, Any], where: str) -> Node:
        """A quoted text: of a length, of a pattern, or of a format."""
        if "format" in schema and schema["format"] not in _FORMATS:
            raise ValueError(f"{where}/format: {schema['format']!r} is none of {', '.join(sorted(_FORMATS))}")
        if len({"pattern", "format"} & set(schema)) + bool({"minLength", "maxLength"} & set(schema)) > 1:
            raise ValueError(f"{where}: pattern, format and lengths are supported one at a time")
        if "pattern" in schema or "format" in schema:
            pattern = schema["pattern"] if "pattern" in schema else f"^{_FORMATS[schema['format']]}$"
            node = parse(pattern)
            anything = Repeat(Chars(((0, 0x10FFFF),)), 0, None)
            front, back = EMPTY if pattern.startswith("^") else anything, EMPTY if pattern.endswith("$") else anything
            return quoted(escaped(Cat((front, node, back))))
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < least:
            raise ValueError(f"{where}: maxLength {most} is below minLength {least}")
        return quoted(Repeat(CHARACTER, least, most))

    def reference(self, target: str, inside: Mapping[str, int], where: str) -> Node:
        """What a local reference stands for, unrolled."""
        if not target.startswith("#"):
            raise ValueError(f"{where}/$ref: {target!r} is not in this schema")
        if inside.get(target, 0) > self.recursion:
            return NOTHING
        found = self.whole
        for part in target[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                raise ValueError(f"{where}/$ref: {target!r} leads nowhere")
            found = found[part]
        return self.value(found, {**inside, target: inside.get(target, 0) + 1}, target)

    def anything(self, depth: int) -> Node:
        """Any JSON value that nests no deeper."""
        text = quoted(Repeat(CHARACTER, 0, None))
        flat = Alt((text, NUMBER, parse("true|false|null")))
        if depth <= 0:
            return flat
        value = self.anything(depth - 1)
        member = Cat((text, SPACE, literal(":"), SPACE, value))
        return Alt((flat, listed("[", value, 0, None, "]"), listed("{", member, 0, None, "}")))

    def only(self, keys: set[str], known: set[str], where: str) -> None:
        """Refuse keywords that would be ignored."""
        if unknown := sorted(keys - known):
            raise ValueError(f"{where}: keyword {unknown[0]!r} is not supported here")


def bracketed(left: str, inner: Node | None, right: str, *, or_nothing: bool = False) -> Node:
    """Brackets around something, one space on each side of it allowed; or around nothing, one space in all."""
    held = [] if inner is None else [Cat((inner, SPACE))]
    return Cat((literal(left), SPACE, Alt((*held, *([EMPTY] if or_nothing or inner is None else []))), literal(right)))


def listed(left: str, item: Node, least: int, most: int | None, right: str) -> Node:
    """Items in brackets, with commas between them."""
    if most == 0:
        return bracketed(left, None, right)
    more = Repeat(Cat((COMMA, item)), max(least - 1, 0), None if most is None else most - 1)
    return bracketed(left, Cat((item, more)), right, or_nothing=least == 0)


def _joined(parts: Sequence[Node]) -> Node | None:
    """All parts with commas between them; None for none."""
    return Cat(tuple(part if index == 0 else Cat((COMMA, part)) for index, part in enumerate(parts))) if parts else None


def quoted(inner: Node) -> Node:
    """A JSON string of characters already escaped."""
    return Cat((literal('"'), inner, literal('"')))


def escaped(node: Node) -> Node:
    """An expression over characters as one over their JSON forms: what must be escaped is, by its short form or as \\u."""
    if isinstance(node, Repeat):
        return Repeat(escaped(node.part), node.least, node.most)
    if isinstance(node, Cat | Alt):
        return type(node)(tuple(map(escaped, node.parts)))
    plain = without(union(without(node.ranges), _MUST_ESCAPE))
    special = [code for low, high in node.ranges for code in (*range(low, min(high, 31) + 1), 34, 92) if low <= code <= high]
    forms = [literal(f"\\{_SHORT[code]}" if code in _SHORT else f"\\u{code:04x}") for code in dict.fromkeys(special)]
    return Alt((Chars(plain), *forms))


def exactly(value: Any) -> Node:
    """One JSON value, written without spaces but the optional one."""
    if isinstance(value, Mapping):
        members: Sequence[Node] = [Cat((exactly(str(k)), SPACE, literal(":"), SPACE, exactly(v))) for k, v in value.items()]
        return bracketed("{", _joined(members), "}")
    if isinstance(value, list | tuple):
        return bracketed("[", _joined([exactly(item) for item in value]), "]")
    return literal(json.dumps(value, ensure_ascii=False))
