"""JSON schemas (draft 2020-12) as regular expressions over JSON texts (RFC 8259), for constrained decoding.

A schema that fixes how deep its values nest describes a regular language; one that refers to itself is unrolled so many times.
Properties come in the schema's order and only those it names; one space is allowed where JSON allows whitespace.

Schemas that hold together (allOf, and what stands beside a reference, anyOf or enum) are merged: property by property, item by
item, and by the product of automata for numbers and strings. Some spellings are left out: a number with bounds has no
exponent, an integer no point, and characters of a pattern or enum are escaped only where they must be. A string's length counts
characters: an escape is one, and so is a pair of surrogates; half of one is no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise, product
from math import inf, isfinite
from typing import Any

from llmlab.reference.decoding._automaton import (
    EMPTY,
    NOTHING,
    All,
    Alt,
    Automaton,
    Cat,
    Chars,
    Node,
    Repeat,
    literal,
    minimal,
    parse,
    unanchored,
    union,
    without,
)
from llmlab.reference.decoding._decimals import DECIMAL, INTEGER, beyond, multiples

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
    "readOnly",
    "writeOnly",
}
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf"}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": set(),
    "null": set(),
}
_FORMS = {
    **dict.fromkeys(_BOUNDS, "number"),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), "integer"),
    **dict.fromkeys(("pattern", "format"), "string"),
    **dict.fromkeys(("enum", "required", "prefixItems"), "array"),
    "properties": "object",
}

SPACE = Repeat(Chars(((32, 32),)), 0, 1)
COMMA = Cat((SPACE, literal(","), SPACE))
_MUST_ESCAPE = ((0, 31), (34, 34), (92, 92))
_SHORT = {34: '"', 92: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
_ANY = Repeat(Chars(((0, 0x10FFFF),)), 0, None)
_PLAIN = Chars(without(_MUST_ESCAPE))
_HALVES = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPES = rf"\\u([0-9a-cA-CefEF][0-9a-fA-F]{{3}}|[dD][0-7][0-9a-fA-F]{{2}})|{_HALVES}"
CHARACTER = minimal(Alt((_PLAIN, parse(r'\\["\\/bfnrt]'), parse(_ESCAPES))))
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
    may be inside itself `recursion` times; where a value would have to go deeper, there is none. Without a type, values have
    those types that the schema's keywords speak of.

    Raises:
        ValueError: a keyword that is not supported, a reference that leads nowhere, or a value no schema can have.
    """
    return _Reader(schema, recursion).value([_Part(schema, "#", {})])


@dataclass(frozen=True)
class _Part:
    """One of the schemas that a value must meet together: where it stands, and how often each reference led into itself."""

    schema: Any
    where: str
    inside: Mapping[str, int]

    def at(self, *keys: str | int) -> _Part:
        """The schema under these keys of this one."""
        found = self.schema
        for key in keys:
            found = found[key]
        return replace(self, schema=found, where="/".join(map(str, (self.where, *keys))))

    def each(self, keyword: str) -> list[_Part]:
        """The schemas of a list under a keyword."""
        schemas = self.schema.get(keyword, ())
        if not isinstance(schemas, list | tuple):
            raise ValueError(f"{self.where}/{keyword}: {schemas!r} is no list")
        return [self.at(keyword, index) for index in range(len(schemas))]


@dataclass(frozen=True)
class _Reader:
    whole: Any
    recursion: int

    def value(self, parts: Sequence[_Part], depth: int | None = None) -> Node:
        """What all of these schemas allow together; any value of a depth where they say nothing."""
        depth = self.recursion if depth is None else depth
        return Alt(tuple(self.plain(way) if way else self.anything(depth) for way in self.ways(parts)))

    def ways(self, parts: Sequence[_Part]) -> list[list[_Part]]:
        """Ways to meet all of these: each a list of schemas without references and without allOf, anyOf and oneOf."""
        return [[part for chosen in choice for part in chosen] for choice in product(*map(self.ways_of_one, parts))]

    def ways_of_one(self, part: _Part) -> list[list[_Part]]:
        """The same for one schema; none where a reference leads into itself too often."""
        schema = part.schema
        if isinstance(schema, bool):
            return [[]] if schema else []
        if not isinstance(schema, Mapping):
            raise ValueError(f"{part.where}: {schema!r} is no schema")
        if "$id" in schema and part.schema is not self.whole:
            raise ValueError(f"{part.where}: keyword '$id' is supported for the whole schema only")
        own = {key: schema[key] for key in schema if key not in _ANNOTATIONS | _COMBINING}
        parted = [[[replace(part, schema=own)]]] if own else []
        if own:
            _check(own, part.where)
        if "$ref" in schema:
            parted.append(self.reference(schema["$ref"], part))
        if "allOf" in schema:
            parted.append(self.ways(part.each("allOf")))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                parted.append([way for one in part.each(keyword) for way in self.ways_of_one(one)])
        return [[one for chosen in choice for one in chosen] for choice in product(*parted)]

    def reference(self, target: Any, part: _Part) -> list[list[_Part]]:
        """The ways of what a local reference stands for, unrolled."""
        if not isinstance(target, str) or not target.startswith("#"):
            raise ValueError(f"{part.where}/$ref: {target!r} is not in this schema")
        times = part.inside.get(target, 0)
        if times > self.recursion:
            return []
        found = self.whole
        for key in target[1:].split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise ValueError(f"{part.where}/$ref: {target!r} leads nowhere")
            found = found[key]
        return self.ways_of_one(_Part(found, target, {**part.inside, target: times + 1}))

    def plain(self, parts: Sequence[_Part]) -> Node:
        """Values of each type that all of these schemas allow."""
        types = [_types(part.schema, part.where) for part in parts if "type" in part.schema]
        fixed = [part for part in parts if {"enum", "const"} & set(part.schema)]
        mentioned = {kind for kind in _KEYWORDS if any(_KEYWORDS[kind] & set(part.schema) for part in parts)}
        kinds = set.intersection(*types) if types else set(_KEYWORDS) if fixed else mentioned
        kinds -= {"integer"} if "number" in kinds else set()
        nodes = []
        for kind in (kind for kind in _KEYWORDS if kind in kinds):
            rules = [part for part in parts if _KEYWORDS[kind] & set(part.schema)]
            nodes.append(self.chosen(kind, fixed, rules) if fixed else self.typed(kind, rules))
        return Alt(tuple(nodes))

    def chosen(self, kind: str, fixed: Sequence[_Part], rules: Sequence[_Part]) -> Node:
        """The values of a type that all of the enums and consts name, as far as the rules allow them."""
        where = fixed[0].where
        kinds = {"integer", "number"} if kind == "number" else {kind}
        others = [set(map(_same, _fixed(part.schema))) for part in fixed[1:]]
        values = [value for value in _fixed(fixed[0].schema) if all(_same(value) in other for other in others)]
        values = [value for value in values if _type(value, where) in kinds]
        if values and rules and kind in ("object", "array"):
            raise ValueError(f"{where}: an {kind} in enum or const is not supported beside keywords for {kind}s")
        texts = Alt(tuple(map(exactly, values)))
        return All((texts, self.typed(kind, rules))) if rules else texts

    def typed(self, kind: str, rules: Sequence[_Part]) -> Node:
        """One type's values."""
        if kind == "object":
            return self.object(rules)
        if kind == "array":
            return self.array(rules)
        if kind == "string":
            return _all(*(node for part in rules for node in _texts(part))) if rules else quoted(Repeat(CHARACTER, 0, None))
        if kind in ("integer", "number"):
            plain = INTEGER if kind == "integer" else DECIMAL if rules else NUMBER
            return _all(plain, *(node for part in rules for node in _numbers(part)))
        return parse("true|false") if kind == "boolean" else literal("null")

    def object(self, rules: Sequence[_Part]) -> Node:
        """Properties in order, each that is not required with its comma or not at all."""
        names = list(dict.fromkeys(name for part in rules for name in part.schema.get("properties", ())))
        required = {name for part in rules for name in part.schema.get("required", ())}
        for part in rules:
            if missing := set(part.schema.get("required", ())) - set(names):
                raise ValueError(f"{part.where}/required: {sorted(missing)[0]!r} is no property")
            if names and part.schema.get("additionalProperties", False) is not False:
                raise ValueError(f"{part.where}/additionalProperties: supported beside properties only as false")
        if not names:
            more = [part.at("additionalProperties") for part in rules if "additionalProperties" in part.schema]
            name = quoted(Repeat(CHARACTER, 0, None))
            return listed("{", Cat((name, SPACE, literal(":"), SPACE, self.value(more, self.recursion - 1))), 0, None, "}")
        members = []
        for name in names:
            naming = [part for part in rules if name in part.schema.get("properties", ())]
            closed = [part for part in rules if part not in naming and "additionalProperties" in part.schema]
            held = [part.at("properties", name) for part in naming] + [part.at("additionalProperties") for part in closed]
            members.append(minimal(Cat((exactly(name), SPACE, literal(":"), SPACE, self.value(held)))))
        later = [Repeat(Cat((COMMA, member)), int(name in required), 1) for name, member in zip(names, members)]
        first = [index for index in range(len(names)) if not required & set(names[:index])]
        return bracketed("{", Alt(tuple(Cat((members[i], *later[i + 1 :])) for i in first)), "}", or_nothing=not required)

    def array(self, rules: Sequence[_Part]) -> Node:
        """Items with commas between them: the first ones as prefixItems say, the others as items says."""
        least = max((int(part.schema.get("minItems", 0)) for part in rules), default=0)
        most = min((int(part.schema["maxItems"]) for part in rules if "maxItems" in part.schema), default=None)
        if most is not None and most < least:
            return NOTHING
        if most == 0:
            return bracketed("[", None, "]")
        prefixes = [part.each("prefixItems") for part in rules]
        rests = [[part.at("items")] if "items" in part.schema else [] for part in rules]

        def item(index: int) -> Node:
            held = [prefix[index : index + 1] if index < len(prefix) else rest for prefix, rest in zip(prefixes, rests)]
            return self.value([part for one in held for part in one], self.recursion - 1)

        count = max([1, *map(len, prefixes)])
        count = count if most is None else min(count, most)
        node: Node = Repeat(Cat((COMMA, item(count))), max(least - count, 0), None if most is None else most - count)
        for index in range(count - 1, 0, -1):
            node = Cat((COMMA, item(index), node))
            node = node if index < least else Alt((node, EMPTY))
        return bracketed("[", Cat((item(0), node)), "]", or_nothing=least == 0)

    def anything(self, depth: int) -> Node:
        """Any JSON value that nests no deeper."""
        text = quoted(Repeat(CHARACTER, 0, None))
        flat = Alt((text, NUMBER, parse("true|false|null")))
        if depth <= 0:
            return flat
        value = self.anything(depth - 1)
        member = Cat((text, SPACE, literal(":"), SPACE, value))
        return Alt((flat, listed("[", value, 0, None, "]"), listed("{", member, 0, None, "}")))


def _check(schema: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that would be ignored, and bounds that are none or leave nothing."""
    known = {"type", "enum", "const"}.union(*(_KEYWORDS[kind] for kind in _types(schema, where)))
    if unknown := sorted(set(schema) - known):
        raise ValueError(f"{where}: keyword {unknown[0]!r} is not supported here")
    for key in set(schema) & set(_FORMS):
        if _type(schema[key], f"{where}/{key}") not in (_FORMS[key], *(["integer"] if _FORMS[key] == "number" else [])):
            raise ValueError(f"{where}/{key}: {schema[key]!r} is no {_FORMS[key]}")
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems")):
        for key in (least, most):
            if schema.get(key, 0) < 0:
                raise ValueError(f"{where}/{key}: {schema[key]} is below 0")
        if schema.get(most, inf) < schema.get(least, 0):
            raise ValueError(f"{where}: {most} {schema[most]} is below {least} {schema[least]}")
    if schema.get("multipleOf", 1) <= 0:
        raise ValueError(f"{where}/multipleOf: {schema['multipleOf']} is not above 0")
    for least, most in product(("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        low, high = schema.get(least, -inf), schema.get(most, inf)
        if high < low or (high == low and (least, most) != ("minimum", "maximum")):
            raise ValueError(f"{where}: {most} {high} leaves nothing above {least} {low}")


def _types(schema: Mapping[str, Any], where: str) -> set[str]:
    """The types a schema states, or all; an integer is a number too."""
    stated = schema.get("type", list(_KEYWORDS))
    stated = stated if isinstance(stated, list | tuple) else [stated]
    if unknown := [kind for kind in stated if kind not in list(_KEYWORDS)]:  # a list, for what has no hash
        raise ValueError(f"{where}/type: {unknown[0]!r} is none of {', '.join(_KEYWORDS)}")
    return {*stated, *(["integer"] if "number" in stated else [])}


def _type(value: Any, where: str) -> str:
    """The type of a JSON value."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    if isinstance(value, int | float) and isfinite(value):
        return "integer" if value == int(value) else "number"
    for kind, types in (("string", str), ("object", Mapping), ("array", (list, tuple))):
        if isinstance(value, types):
            return kind
    raise ValueError(f"{where}: {value!r} is no JSON value")


def _fixed(schema: Mapping[str, Any]) -> list[Any]:
    """The values that enum and const name."""
    values = schema.get("enum", [schema.get("const")])
    return [value for value in values if "const" not in schema or _same(value) == _same(schema["const"])]


def _same(value: Any) -> str:
    """One text for values that JSON schema calls equal: 1 and 1.0, objects in any order."""
    whole = json.loads(json.dumps(value), parse_float=lambda text: float(text) if float(text) % 1 else int(float(text)))
    return json.dumps(whole, sort_keys=True)


def _all(*nodes: Node) -> Node:
    return nodes[0] if len(nodes) == 1 else All(nodes)


def _decimal(value: float) -> Decimal:
    """A number as it is written: 0.1 is a tenth."""
    return Decimal(repr(value))


def _numbers(part: _Part) -> Iterator[Node]:
    """What a schema says of numbers."""
    for keyword in sorted(_KEYWORDS["number"] & set(part.schema)):
        bound = _decimal(part.schema[keyword])
        if keyword == "multipleOf":
            try:
                yield multiples(bound)
            except ValueError as error:
                raise ValueError(f"{part.where}/multipleOf: {error}") from None
        else:
            yield beyond(bound, above=keyword.lower().endswith("minimum"), strict=keyword.startswith("exclusive"))


def _texts(part: _Part) -> Iterator[Node]:
    """What a schema says of strings: their length, a pattern, a format."""
    if {"minLength", "maxLength"} & set(part.schema):
        most = part.schema.get("maxLength")
        yield quoted(Repeat(CHARACTER, int(part.schema.get("minLength", 0)), None if most is None else int(most)))
    if "format" in part.schema:
        if part.schema["format"] not in _FORMATS:
            raise ValueError(f"{part.where}/format: {part.schema['format']!r} is none of {', '.join(sorted(_FORMATS))}")
        yield quoted(escaped(parse(_FORMATS[part.schema["format"]])))
    if "pattern" in part.schema:
        try:
            yield quoted(escaped(searched(part.schema["pattern"])))
        except ValueError as error:
            raise ValueError(f"{part.where}/pattern: {error}") from None


def searched(pattern: str) -> Node:
    """Texts in which a pattern is found somewhere; each of its alternatives has its own `^` and `$`."""
    cuts = [-1, *_bars(pattern), len(pattern)]
    found = []
    for start, end in pairwise(cuts):
        _, front, back = unanchored(pattern[start + 1 : end])
        found.append(Cat((EMPTY if front else _ANY, parse(pattern[start + 1 : end]), EMPTY if back else _ANY)))
    return found[0] if len(found) == 1 else Alt(tuple(found))


def _bars(pattern: str) -> Iterator[int]:
    """Where `|` stands outside groups and classes."""
    depth = 0
    for sign in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|]", pattern, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(sign[0], 0)
        if sign[0] == "|" and depth == 0:
            yield sign.start()


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
    if isinstance(node, Cat | Alt | All):
        return type(node)(tuple(map(escaped, node.parts)))
    if isinstance(node, Automaton):
        raise TypeError("an automaton reads bytes, not characters that could be escaped")
    plain = without(union(without(node.ranges), _MUST_ESCAPE))
    special = [code for low, high in node.ranges for code in (*range(low, min(high, 31) + 1), 34, 92) if low <= code <= high]
    forms = [literal(f"\\{_SHORT[code]}" if code in _SHORT else f"\\u{code:04x}") for code in dict.fromkeys(special)]
    return Alt((Chars(plain), *forms))


def exactly(value: Any) -> Node:
    """One JSON value, written without spaces but the optional one; a fraction with an exponent or without."""
    if isinstance(value, Mapping):
        members: Sequence[Node] = [Cat((exactly(str(k)), SPACE, literal(":"), SPACE, exactly(v))) for k, v in value.items()]
        return bracketed("{", _joined(members), "}")
    if isinstance(value, list | tuple):
        return bracketed("[", _joined([exactly(item) for item in value]), "]")
    spelled = [json.dumps(value, ensure_ascii=False)]
    if isinstance(value, float):
        spelled += [format(_decimal(value), "f"), *([str(int(value))] if value.is_integer() else [])]
    return Alt(tuple(map(literal, dict.fromkeys(spelled))))
