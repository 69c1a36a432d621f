"""Masks let through exactly what can still be finished, and schemas say what they mean."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._automaton import Alt, Cat, Chars, Repeat, automaton, byte_ranges, parse
from llmlab.reference.decoding._schema import schema_expression
from llmlab.reference.decoding.constrained import Constraint, Vocabulary, constrained, constrained_decoding
from llmlab.reference.decoding.greedy import GREEDY

BYTES = Vocabulary((*(bytes([b]) for b in range(256)), b""), 256)
SEEDS = st.integers(0, 2**32 - 1)


def expressions() -> st.SearchStrategy[str]:
    """Patterns of what is supported, over few letters."""
    atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "é", "\\d", "x?", "(?:ab|c)"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
        ),
        max_leaves=5,
    )


@given(expressions(), st.lists(st.text("abcéx1\n", max_size=5), max_size=8))
def test_an_automaton_accepts_what_the_expression_matches(pattern: str, texts: list[str]) -> None:
    machine = automaton(parse(pattern))
    for text in [*texts, "", "ab", "é"]:
        assert machine.accepts(text) == bool(re.fullmatch(pattern, text, flags=re.ASCII)), text


@pytest.mark.parametrize(
    ("one", "other"),
    [("(a|b)*", "(a*b*)*"), ("a{2,4}", "aa(a(a)?)?"), ("aa*", "a+"), ("[a-c]", "a|b|c"), ("(ab)?c|c", "(ab)?c")],
)
def test_equal_languages_have_equal_minimal_automata(one: str, other: str) -> None:
    first, second = automaton(parse(one)), automaton(parse(other))
    np.testing.assert_array_equal(first.table, second.table)
    np.testing.assert_array_equal(first.accepting, second.accepting)


@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_byte_ranges_are_the_characters_and_no_others(one: int, other: int) -> None:
    low, high = sorted((one, other))
    machine = automaton(Chars(((low, high),))) if not 0xD800 <= low <= high <= 0xDFFF else None
    for code in {low, high, max(low - 1, 0), min(high + 1, 0x10FFFF), (low + high) // 2}:
        if machine is not None and not 0xD800 <= code <= 0xDFFF:
            assert machine.accepts(chr(code)) == (low <= code <= high)
    assert all(len(sequence) <= 4 for sequence in byte_ranges(low, high))


@given(expressions(), SEEDS)
def test_every_walk_can_be_finished(pattern: str, seed: int) -> None:
    """Over single bytes a text never gets stuck, and where it ends it matches."""
    constraint = Constraint.regex(pattern, BYTES)
    rng, state, data = np.random.default_rng(seed), 0, b""
    for _ in range(12):
        allowed = np.flatnonzero(constraint.mask(state))
        assert len(allowed)
        token = int(rng.choice(allowed))
        if token == BYTES.end:
            assert re.fullmatch(pattern, data.decode(), flags=re.ASCII)
            break
        data += BYTES.tokens[token]
        state = constraint.after(state, token)
        assert state >= 0


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a(?=b)", "groups are"),
        ("(a)\\1", r"\\1 is not supported"),
        ("\\bword", r"\\b is not supported"),
        ("a^b", "at the ends"),
        ("(ab", "never closed"),
        ("ab)", "unmatched"),
        ("[ab", "never closed"),
        ("*a", "repeats nothing"),
        ("a{x}", "begins no count"),
        ("a{3,1}", "is empty"),
        ("a++", "possessive"),
        ("[b-a]", "no range"),
        ("\\xzz", "no character"),
        ("(?P<n>a)", "groups are"),
        ("((a{99}){99}){99}", "more than"),
    ],
)
def test_what_is_not_supported_is_one_line(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        automaton(parse(pattern))
    assert "\n" not in str(error.value)


def test_an_expression_that_no_text_matches_is_refused() -> None:
    with pytest.raises(ValueError, match="no text matches"):
        automaton(Cat((Chars(((97, 97),)), Alt(()))))
    assert automaton(Repeat(Chars(()), 0, None)).accepts("")


def test_a_token_may_end_inside_a_character_and_duplicates_count_both() -> None:
    steps = constrained("é", [b"\xc3", b"\xa9", b"\xc3\xa9", b"\xc3\xa9", b"", b"e"], 4, [0.0, 0.0, 0.0])
    assert steps == [((0, 2, 3), 0), ((1,), 1), ((4,), 4)]


def test_a_vocabulary_that_cannot_spell_the_rest_gets_stuck_and_says_so() -> None:
    assert constrained("ab", [b"a", b"c", b""], 2, [0.0, 0.0]) == [((0,), 0)]
    constraint = Constraint.regex("ab", Vocabulary((b"a", b"c", b""), 2))
    with pytest.raises(ValueError, match="no token"):
        constrained_decoding(lambda new, state: (np.zeros(3), None), [0], constraint, max_tokens=5)


SCHEMAS = {
    "record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 2},
            "score": {"type": ["number", "null"]},
        },
        "required": ["name", "tags"],
    },
    "choice": {"anyOf": [{"type": "boolean"}, {"const": {"k": [1, "x"]}}, {"type": "string", "format": "date"}]},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["v"],
            }
        },
    },
    "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "code": {"type": "string", "pattern": '^[A-Z"]{2}-[0-9]+$'},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_under_a_schema_are_valid_json_under_it(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    constraint = Constraint.schema(SCHEMAS[name], BYTES, recursion=2)
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(30):
        state, data = 0, b""
        for _ in range(120):
            allowed = np.flatnonzero(constraint.mask(state))
            token = BYTES.end if BYTES.end in allowed and rng.random() < 0.5 else int(rng.choice(allowed))
            if token == BYTES.end:
                jsonschema.validate(json.loads(data), SCHEMAS[name])
                finished += 1
                break
            data += BYTES.tokens[token]
            state = constraint.after(state, token)
    assert finished > 5


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("record", {"name": "Ana", "tags": []}, True),
        ("record", {"name": 'q"\\\u0001', "age": -3, "tags": ["a", 3], "score": None}, True),
        ("record", {"name": "Ana", "tags": [], "score": 1.5e-7}, True),
        ("record", {"name": "Ana"}, False),
        ("record", {"name": "Ana", "tags": ["c"]}, False),
        ("record", {"name": "Ana", "tags": ["a", "a", "a"]}, False),
        ("record", {"name": "more than eight", "tags": []}, False),
        ("choice", {"k": [1, "x"]}, True),
        ("choice", "2024-02-30", True),
        ("choice", "2024-13-01", False),
        ("tree", {"v": 1, "next": {"v": 2, "next": {"v": 3}}}, True),
        ("tree", {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": {"v": 4}}}}, False),
        ("pair", [1, True], True),
        ("pair", [1], False),
        ("map", {"x": 1, "y z": 2}, True),
        ("map", {"x": "1"}, False),
        ("code", 'A"-7', True),
        ("code", "ab-7", False),
    ],
)
def test_schemas_accept_what_they_say(name: str, value: object, allowed: bool) -> None:
    machine = Constraint.schema(SCHEMAS[name], BYTES, recursion=2).machine
    for text in (json.dumps(value), json.dumps(value, separators=(",", ":")), json.dumps(value, ensure_ascii=False)):
        assert machine.accepts(text) == allowed


def test_any_value_means_any_json_of_bounded_depth() -> None:
    machine = automaton(schema_expression({}, recursion=1))
    for value in (None, -0.5, "x", [], {}, [1, "a"], {"a": True}):
        assert machine.accepts(json.dumps(value))
    assert not machine.accepts("[[1]]")
    assert not machine.accepts("[1,]")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "str"}, "none of object"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"$ref": "other.json"}, "not in this schema"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "'a' is no property"),
        ({"type": "string", "format": "email"}, "'email' is none of"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems 2"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength 2"),
        ({"not": {}}, "'not' is not supported"),
        (3, "no schema"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {}}, "only as false"),
    ],
)
def test_schemas_that_are_not_supported_are_one_line(schema: object, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        schema_expression(schema)
    assert "\n" not in str(error.value)


def test_a_schema_that_cannot_end_is_refused() -> None:
    endless = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}}
    with pytest.raises(ValueError, match="no text matches"):
        automaton(schema_expression(endless))


SAME_AS_OUTLINES = [
    SCHEMAS["tree"]["$defs"]["node"] | {"properties": {"v": {"type": "integer"}, "w": {"type": "null"}}},  # type: ignore[index]
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}}},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}, "required": ["b"]},
    {"enum": ['a"b', 1, None, True, 1.5]},
    {"type": "string", "pattern": "^[a-c]+$"},
]


@pytest.mark.parametrize("schema", SAME_AS_OUTLINES, ids=str)
def test_the_automaton_is_that_of_outlines(schema: dict[str, object]) -> None:
    """Two minimal automata are equal exactly if the two libraries' expressions describe the same texts."""
    outlines = pytest.importorskip("outlines_core.json_schema", reason="needs outlines_core")
    ours = automaton(schema_expression(schema))
    theirs = automaton(parse(outlines.build_regex_from_schema(json.dumps(schema))))
    np.testing.assert_array_equal(ours.table, theirs.table)
    np.testing.assert_array_equal(ours.accepting, theirs.accepting)


def test_where_outlines_allows_less_json_than_there_is() -> None:
    """RFC 8259 lets an exponent go without a sign, a string hold \\u0041 and U+007F, a list a space before its comma."""
    outlines = pytest.importorskip("outlines_core.json_schema", reason="needs outlines_core")
    for schema, text in (
        ({"type": "number"}, "1e5"),
        ({"type": "string"}, '"\\u0041"'),
        ({"type": "string"}, '"\x7f"'),
        ({"type": "array", "items": {"type": "integer"}}, "[1 ,2]"),
    ):
        json.loads(text)
        assert automaton(schema_expression(schema)).accepts(text)
        assert not re.fullmatch(outlines.build_regex_from_schema(json.dumps(schema)), text)


def test_outlines_index_loses_tokens_where_a_text_may_end() -> None:
    """Its index (0.2.14) lets no token through from there that leads to where the text may not end: we follow the paper."""
    outlines_core = pytest.importorskip("outlines_core", reason="needs outlines_core")
    index = outlines_core.Index("yes( no)*", outlines_core.Vocabulary(3, {"yes": [0], " ": [1], "no": [2]}))
    state = index.get_next_state(index.get_initial_state(), 0)
    assert index.get_allowed_tokens(state) == [3]
    assert constrained("yes( no)*", [b"yes", b" ", b"no", b""], 3, [0.0, 0.0])[1][0] == (1, 3)


def test_a_model_under_a_constraint_says_its_likeliest_text_of_it() -> None:
    step = dict(GREEDY.examples(np.random.default_rng(3)))["step"]
    vocabulary = Vocabulary((*(bytes([65 + v]) for v in range(36)), b""), 36)
    constraint = Constraint.regex("[A-D]{3}|[E-Z]{2}", vocabulary)
    told = constrained_decoding(step, [1, 2], constraint, max_tokens=9)
    assert told.reason == "id"
    assert re.fullmatch("[A-D]{3}|[E-Z]{2}", "".join(chr(65 + v) for v in told.ids[:-1]))
    free = step([1, 2], None)[0]
    assert told.ids[0] == max(range(26), key=lambda v: free[v])


def test_an_end_that_is_no_token_is_named() -> None:
    with pytest.raises(ValueError, match="end=7"):
        constrained("a", [b"a"], 7, [])
