"""Texts under a schema are those that jsonschema calls valid: bounds, multiples, patterns with lengths, schemas together."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._automaton import All, Automaton, Cat, automaton, parse
from llmlab.reference.decoding._decimals import DECIMAL, beyond, multiples
from llmlab.reference.decoding._schema import schema_expression, searched

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")


def machine(schema: Any, **options: int) -> Automaton:
    return automaton(schema_expression(schema, **options))


def valid(schema: Any, value: Any) -> bool:
    """What jsonschema says, with fractions as they are written and `$` as ECMA 262 has it: at the very end."""
    exact = json.loads(json.dumps(schema).replace('$"', '\\\\Z"'), parse_float=Decimal)
    return bool(jsonschema.Draft202012Validator(exact).is_valid(value))


def short_texts(accepting: Automaton, alphabet: bytes, most: int = 2000) -> Iterator[bytes]:
    """Texts over an alphabet that an automaton accepts, the shortest first, after a walk of so many steps."""
    queue = [(b"", 0)]
    for text, state in queue:
        if accepting.accepting[state]:
            yield text
        for byte in alphabet if len(queue) < most else b"":
            after = int(accepting.table[state, byte])
            if after >= 0:
                queue.append((text + bytes([byte]), after))


WHOLE = [*range(-130, 131), *(sign * 10**n + step for sign in (1, -1) for n in (3, 4, 9, 18) for step in (-1, 0, 1))]
FRACTIONS = [
    sign * Decimal(hundredths) / 100 for sign in (1, -1) for hundredths in (7, 25, 50, 107, 125, 150, 225, 975, 976, 1005)
]
STRINGS = ["".join(letters) for n in range(4) for letters in itertools.product('ab"\\é😀\n', repeat=n)]
NUMBERS = [
    {"type": "integer", "minimum": 7, "maximum": 123},
    {"type": "integer", "minimum": -12, "maximum": 9},
    {"type": "integer", "exclusiveMinimum": -100, "exclusiveMaximum": -9},
    {"type": "integer", "minimum": 0, "maximum": 0},
    {"type": "integer", "minimum": -0.5},
    {"type": "integer", "maximum": 99},
    {"type": "integer", "minimum": 999, "exclusiveMaximum": 10_000},
    {"type": "integer", "minimum": -(10**18), "maximum": 10**18},
    {"type": "integer", "minimum": 2.5, "exclusiveMinimum": 3, "maximum": 1e3, "exclusiveMaximum": 1000},
    {"type": "integer", "multipleOf": 3},
    {"type": "integer", "multipleOf": 12, "minimum": -30, "exclusiveMaximum": 120},
    {"type": "integer", "multipleOf": 2.5},
    {"type": "number", "minimum": 0.07, "maximum": 9.75},
    {"type": "number", "exclusiveMinimum": -1.25, "exclusiveMaximum": 2},
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "maximum": -0.5},
    {"type": "number", "multipleOf": 0.25},
    {"type": "number", "multipleOf": 0.01, "minimum": 1},
    {"allOf": [{"type": "number", "minimum": -2}, {"type": "integer"}, {"maximum": 10, "multipleOf": 2}]},
    {"anyOf": [{"maximum": -100}, {"minimum": 100}], "type": "integer", "allOf": [{"multipleOf": 5}]},
    {"enum": [1, 5, 99, -3, 1.5, 2.0], "minimum": 0, "maximum": 9, "type": "number"},
    {"enum": [1, 5, 99, -3, 1.5], "type": "integer"},
    {"allOf": [{"enum": [1, 2, 99]}, {"enum": [99, 2.0]}, {"const": 2}]},
]


@pytest.mark.parametrize("schema", NUMBERS, ids=str)
def test_numbers_are_those_that_jsonschema_accepts(schema: dict[str, Any]) -> None:
    accepting = machine(schema)
    for value in [*WHOLE, *FRACTIONS]:
        assert accepting.accepts(str(value)) == valid(schema, value), value
    for text in short_texts(accepting, b"-.0123459eE+"):
        assert valid(schema, json.loads(text, parse_float=Decimal)), text


@given(st.integers(-2000, 2000), st.integers(0, 3000), st.lists(st.integers(-5000, 5000), min_size=1))
def test_an_integer_range_holds_its_integers_and_no_others(low: int, width: int, values: list[int]) -> None:
    accepting = machine({"type": "integer", "minimum": low, "maximum": low + width})
    for value in [*values, low, low - 1, low + width, low + width + 1]:
        assert accepting.accepts(str(value)) == (low <= value <= low + width)


@given(st.decimals(-50, 50, places=2), st.booleans(), st.booleans(), st.lists(st.decimals(-50, 50, places=3), min_size=1))
def test_a_bound_compares_decimals_digit_by_digit(bound: Decimal, above: bool, strict: bool, values: list[Decimal]) -> None:
    accepting = automaton(All((DECIMAL, beyond(bound, above=above, strict=strict))))
    for value in [*values, bound]:
        order = value.compare(bound) if above else bound.compare(value)
        assert accepting.accepts(format(value, "f")) == (order > 0 or (order == 0 and not strict))


@given(st.integers(1, 60), st.integers(0, 2), st.lists(st.decimals(-99, 99, places=3), min_size=1))
def test_multiples_leave_no_remainder(digits: int, places: int, values: list[Decimal]) -> None:
    of = Decimal(digits).scaleb(-places)
    accepting = automaton(All((DECIMAL, multiples(of))))
    for value in [*values, 7 * of, -of]:
        assert accepting.accepts(format(value, "f")) == (value % of == 0)


@pytest.mark.parametrize(
    ("schema", "text", "accepted"),
    [
        ({"minimum": 0, "maximum": 0}, "-0", True),
        ({"exclusiveMinimum": 0}, "-0", False),
        ({"minimum": 1}, "-0", False),
        ({"minimum": 0}, "00", False),
        ({"minimum": 5, "maximum": 500}, "007", False),
        ({"minimum": 2**53 + 1}, str(2**53), False),
        ({"maximum": 2**63 - 1}, str(2**63 - 1), True),
        ({"maximum": 2**63 - 1}, str(2**63), False),
        ({"minimum": -(2**63)}, str(-(2**63) - 1), False),
    ],
)
def test_zeros_and_wide_integers(schema: dict[str, Any], text: str, accepted: bool) -> None:
    assert machine({"type": "integer", **schema}).accepts(text) == accepted


def test_a_bounded_number_has_no_exponent() -> None:
    """How many zeros an exponent moves away is no regular matter; without bounds it may stand there."""
    assert machine({"type": "number"}).accepts("1e5")
    assert not machine({"type": "number", "minimum": 0}).accepts("1e5")
    assert machine({"const": 1e-7, "minimum": 0}).accepts("0.0000001")


TEXTS = [
    {"type": "string", "pattern": "^[a-b]+$", "minLength": 2},
    {"type": "string", "pattern": "a", "maxLength": 2},
    {"type": "string", "pattern": "^a|b$"},
    {"type": "string", "pattern": '["\\\\]', "minLength": 1, "maxLength": 2},
    {"type": "string", "pattern": "^[^a]*$", "minLength": 1, "maxLength": 3},
    {"type": "string", "pattern": "\n", "minLength": 3},
    {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "é|😀"}, {"maxLength": 2}]},
    {"allOf": [{"type": "string", "minLength": 1}, {"minLength": 2, "maxLength": 3}, {"maxLength": 2}]},
    {"enum": ["a", "ab", "é", 'b"', "aaa", 3], "type": "string", "minLength": 2, "pattern": '^[ab"]*$'},
]


@pytest.mark.parametrize("schema", TEXTS, ids=str)
def test_strings_are_those_that_jsonschema_accepts(schema: dict[str, Any]) -> None:
    accepting = machine(schema)
    for value in STRINGS:
        assert accepting.accepts(json.dumps(value, ensure_ascii=False)) == valid(schema, value), value
    for text in short_texts(accepting, b'"\\ab\xc3\xa9nu'):
        assert valid(schema, json.loads(text)), text


@pytest.mark.parametrize("text", ["a", "é", "😀", "\\n", '\\"', "\\u0041", "\\ud7ff", "\\ud83d\\ude00", "\\uD83D\\uDE00"])
def test_an_escape_is_one_character_and_so_is_a_pair_of_surrogates(text: str) -> None:
    assert len(json.loads(f'"{text}"')) == 1
    one, two = machine({"type": "string", "minLength": 1, "maxLength": 1}), machine({"type": "string", "minLength": 2})
    assert (one.accepts(f'"{text}"'), two.accepts(f'"{text}"')) == (True, False)
    assert (one.accepts(f'"{text}{text}"'), two.accepts(f'"{text}{text}"')) == (False, True)


@pytest.mark.parametrize("text", ["\\ud83d", "\\ude00", "\\ude00\\ud83d", "\\ud83da"])
def test_half_a_pair_of_surrogates_is_no_text(text: str) -> None:
    assert not machine({"type": "string"}).accepts(f'"{text}"')


POOL: list[Any] = [0, 1, 2, 3, 7, -1, True, None, "a", "bb", [], [1], [1, 2], [1, 2, 3], [1, "a"], [1, "a", 3], [1, "a", 3, 4]]
OBJECTS: list[Any] = [
    {name: value for name, value in zip("abc", values) if value != "absent"}
    for values in itertools.product((1, 3, 7, "x", "absent"), (2, "bb", "absent"), (True, "absent"))
]
TOGETHER = [
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "maximum": 3}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 2}, "b": {"type": "string"}}},
            {"properties": {"c": {"type": "boolean"}}},
        ]
    },
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": ["integer", "string"]}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "allOf": [{"properties": {"a": {"enum": [1, 7]}, "c": False}}],
    },
    {
        "properties": {"a": True, "b": True, "c": {}},
        "allOf": [{"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "additionalProperties": False}],
    },
    {"$ref": "#/$defs/small", "minimum": 2, "$defs": {"small": {"type": "integer", "maximum": 3}}},
    {"allOf": [{"type": ["integer", "null"]}, {"type": ["null", "number", "string"]}, {"minimum": 1}]},
    {"type": ["array"], "items": {"type": "integer"}, "allOf": [{"minItems": 1}, {"maxItems": 2, "items": {"minimum": 2}}]},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"const": 3}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 1, "maxItems": 3},
    {"type": "array", "allOf": [{"prefixItems": [{"type": "integer"}]}, {"items": {"enum": [1, 2]}, "maxItems": 2}]},
    {"type": "array", "prefixItems": [{}, {"type": "string"}], "maxItems": 1},
    {"enum": [[1, 2], {"b": 2, "a": 1}, 3], "allOf": [{"enum": [{"a": 1.0, "b": 2}, [1.0, 2], "a"]}]},
]


@pytest.mark.parametrize("schema", TOGETHER, ids=str)
def test_schemas_together_accept_what_jsonschema_accepts(schema: dict[str, Any]) -> None:
    accepting = machine(schema, recursion=1)
    for value in [*POOL, *OBJECTS]:
        if isinstance(value, dict) and "enum" not in schema:
            named = {name for part in [schema, *schema.get("allOf", ())] for name in part.get("properties", ())}
            assert accepting.accepts(json.dumps(value)) == (valid(schema, value) and set(value) <= named), value
        elif not isinstance(value, dict):
            assert accepting.accepts(json.dumps(value)) == valid(schema, value), value
    for text in short_texts(accepting, b'[]{}":,abc1237'):
        assert valid(schema, json.loads(text)), text


def test_a_product_of_automata_accepts_what_both_accept() -> None:
    accepting = automaton(Cat((All((parse("[ab]*"), parse("(..)*"), parse(".*b"))), parse("c"))))
    for length in range(5):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            assert accepting.accepts(text + "c") == (length % 2 == 0 and text.endswith("b"))
    with pytest.raises(ValueError, match="no text matches"):
        automaton(All((parse("a+"), parse("b+"))))


def test_each_alternative_of_a_pattern_has_its_own_ends() -> None:
    accepting = automaton(searched("^(a|b)|[|]c|x\\$|y$"))
    for text, found in (("a.", True), (".a", False), (".|c.", True), (".x$.", True), (".y", True), ("y.", False), ("c", False)):
        assert accepting.accepts(text) == found == bool(re.search("^(a|b)|[|]c|x\\$|y$", text))


# every keyword of the vocabularies of draft 2020-12 that is not supported, two of former drafts, one of OpenAPI, and a slip
UNSUPPORTED = {
    "not": {},
    "if": {},
    "then": {},
    "else": {},
    "dependentSchemas": {},
    "dependentRequired": {},
    "patternProperties": {},
    "propertyNames": {},
    "minProperties": 1,
    "maxProperties": 1,
    "contains": {},
    "minContains": 1,
    "maxContains": 1,
    "uniqueItems": True,
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "contentEncoding": "base64",
    "contentMediaType": "text/plain",
    "contentSchema": {},
    "$anchor": "a",
    "$dynamicRef": "#a",
    "$dynamicAnchor": "a",
    "$vocabulary": {},
    "dependencies": {},
    "additionalItems": False,
    "nullable": True,
    "minLenght": 1,
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_an_unsupported_keyword_is_refused_where_it_stands(keyword: str) -> None:
    deep = {"type": "object", "properties": {"a": {"allOf": [{"type": "integer"}, {keyword: UNSUPPORTED[keyword]}]}}}
    for schema, where in (({keyword: UNSUPPORTED[keyword]}, "#"), (deep, "#/properties/a/allOf/1")):
        with pytest.raises(ValueError) as error:
            schema_expression(schema)
        assert str(error.value).startswith(f"{where}: keyword '{keyword}' is not supported")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 2}, "#: maximum 2 leaves nothing above minimum 3"),
        ({"exclusiveMinimum": 3, "maximum": 3}, "#: maximum 3 leaves nothing above exclusiveMinimum 3"),
        ({"type": "string", "minimum": 3}, "#: keyword 'minimum' is not supported here"),
        ({"items": {"minimum": "3"}}, "#/items/minimum: '3' is no number"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum: True is no number"),
        ({"maximum": float("inf")}, "#/maximum: inf is no JSON value"),
        ({"multipleOf": 0}, "#/multipleOf: 0 is not above 0"),
        ({"multipleOf": 0.1234567}, "#/multipleOf: multiples of 0.1234567 need more than"),
        ({"minLength": -1}, "#/minLength: -1 is below 0"),
        ({"minLength": 1.5}, "#/minLength: 1.5 is no integer"),
        ({"pattern": 3}, "#/pattern: 3 is no string"),
        ({"pattern": "a(?=b)"}, "#/pattern: pattern 'a"),
        ({"enum": "abc"}, "#/enum: 'abc' is no array"),
        ({"type": {"a": 1}}, "#/type: {'a': 1} is none of"),
        ({"allOf": {}}, "#/allOf: {} is no list"),
        ({"properties": {"a": {"$id": "http://x"}}}, "#/properties/a: keyword '$id' is supported for the whole schema only"),
        ({"const": {"a": 1}, "properties": {"a": {"minimum": 1}}}, "#: an object in enum or const is not supported beside"),
        (
            {"allOf": [{"properties": {"a": {}}}, {"additionalProperties": {"type": "null"}}]},
            "#/allOf/1/additionalProperties: supported beside properties only as false",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(schema: Any, why: str) -> None:
    with pytest.raises(ValueError) as error:
        schema_expression(schema)
    assert str(error.value).startswith(why)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "integer"}, {"type": "string"}]},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 2}]},
        {"type": "integer", "minimum": 0.2, "maximum": 0.8},
        {"type": "integer", "minimum": 13, "maximum": 23, "multipleOf": 12},
        {"type": "string", "pattern": "^a{3}$", "maxLength": 2},
        {"const": 3, "minimum": 4},
    ],
    ids=str,
)
def test_schemas_that_nothing_meets_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no text matches"):
        machine(schema)


def test_a_record_of_many_optional_properties_needs_few_states() -> None:
    names = [f"p{n}" for n in range(30)]
    accepting = machine({"properties": {name: {"type": "integer", "minimum": 0, "maximum": 10**9} for name in names}})
    assert len(accepting.table) < 1000
    assert accepting.accepts(json.dumps(dict.fromkeys(names[::2], 7)))
    assert not accepting.accepts(json.dumps(dict.fromkeys(names[::-1], 7)))


def llguidance_accepts(schema: Any) -> Callable[[str], bool]:
    """Whether llguidance lets a whole text through under a schema, byte by byte."""
    llguidance = pytest.importorskip("llguidance", reason="needs llguidance")

    class Bytes:
        def __init__(self) -> None:
            self.tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
            self.eos_token_id, self.bos_token_id, self.special_token_ids = 256, None, [256]

        def __call__(self, text: str | bytes) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    fresh = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    assert not fresh.is_error(), fresh.get_error()

    def accepts(text: str) -> bool:
        matcher, data = fresh.deep_copy(), list(text.encode())
        return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())

    return accepts


@pytest.mark.parametrize("schema", [*NUMBERS, *TEXTS, *TOGETHER], ids=str)
def test_llguidance_accepts_the_same_values(schema: dict[str, Any]) -> None:
    theirs, ours = llguidance_accepts(schema), machine(schema)
    for value in [*WHOLE, *FRACTIONS, *POOL] if "pattern" not in str(schema) else STRINGS[:200]:
        text = str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)
        if schema == {"type": "number", "multipleOf": 0.25} and text in ("0.5", "-0.5", "1.5", "-1.5"):
            continue  # as the next test says
        assert theirs(text) == ours.accepts(text), text


@pytest.mark.parametrize(
    ("schema", "text", "same_value"),
    [
        ({"type": "number", "multipleOf": 0.25}, "0.5", "0.50"),
        ({"type": "number", "multipleOf": 0.01}, "0.070", "0.07"),
        ({"type": "integer", "minimum": 0}, "-0", "0"),
        ({"type": "string", "maxLength": 1}, '"\\u0041"', '"A"'),
        ({"type": "string", "maxLength": 1}, '"\\ud83d\\ude00"', '"😀"'),
    ],
)
def test_llguidance_refuses_other_spellings_of_values_it_accepts(schema: dict[str, Any], text: str, same_value: str) -> None:
    """llguidance 1.9.1 wants as many digits as multipleOf has, no -0 within bounds, and no \\u for what may stand plainly."""
    theirs = llguidance_accepts(schema)
    assert json.loads(text) == json.loads(same_value)
    assert theirs(same_value)
    assert not theirs(text)
    assert machine(schema).accepts(text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 3}, "2"),
        ({"type": "integer", "multipleOf": 3}, "2"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, '"b"'),
    ],
)
def test_outlines_ignores_bounds_and_patterns_with_lengths(schema: dict[str, Any], text: str) -> None:
    outlines = pytest.importorskip("outlines_core.json_schema", reason="needs outlines_core")
    assert re.fullmatch(outlines.build_regex_from_schema(json.dumps(schema)), text)
    assert not valid(schema, json.loads(text))
    assert not machine(schema).accepts(text)


def test_jsonschema_divides_binary_fractions_and_lets_a_newline_follow_an_end() -> None:
    """It calls 0.07 no multiple of 0.01 unless both come as decimals; Python's `$` is not that of ECMA 262."""
    checker = jsonschema.Draft202012Validator
    assert not checker({"multipleOf": 0.01}).is_valid(0.07)
    assert checker({"multipleOf": Decimal("0.01")}).is_valid(Decimal("0.07"))
    assert machine({"type": "number", "multipleOf": 0.01}).accepts("0.07")
    assert checker({"pattern": "^a$"}).is_valid("a\n")
    assert not machine({"type": "string", "pattern": "^a$"}).accepts('"a\\n"')
