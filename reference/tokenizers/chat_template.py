"""Chat templates: a model's own Jinja program that turns messages into its prompt, and which characters the assistant wrote.

A template (https://huggingface.co/docs/transformers/chat_templating, 2023) comes with a model, so it is code of strangers: it
runs in Jinja's immutable sandbox and sees plain data only. `{% generation %} ... {% endgeneration %}` marks what the assistant
wrote; training that learns from answers alone (Ouyang et al. 2022, arXiv:2203.02155) takes its loss mask from there.

Jinja is the one library beyond NumPy and `regex` that this floor uses; it is imported when a template is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers import byte_bpe

Span = tuple[int, int]
"""First character, and the one after the last."""
MOST_CHARACTERS = 1 << 20
"""A template of over a million characters is refused; the longest published ones have some twenty thousand."""
NOTE = "note generation"
"""No name a template can spell."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message's reasoning is passed; templates read the first, some the second."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> tuple[str, list[Span]]:
    """Return the prompt and the spans of it that stand in `{% generation %}` blocks.

    `variables` are what else a template reads: bos_token, documents, enable_thinking, ... A span counts the characters before
    the block began to be written, so a block inside a captured part (`{% set %}`) is not where it ends up.

    Raises:
        InputError: the template is no Jinja, is too long, breaks out of the sandbox, or raises an exception of its own.

    >>> template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    >>> render(template, [{"role": "assistant", "content": "Hi"}])
    ('Hi;', [(0, 2)])
    """
    import jinja2

    blocks: list[str] = []
    spans: list[Span] = []
    try:
        program = _compiled(template)
        seen = {"messages": [_message(message) for message in messages], "tools": _plain(tools)}
        seen |= {"documents": None, "add_generation_prompt": add_generation_prompt, **_plain(variables)}

        def note(text: str) -> None:
            start = sum(map(len, blocks))
            spans.append((start, start + len(text)))

        for block in program.generate(**seen, **{NOTE: note}):
            blocks.append(block)  # one by one: a span starts where the text written so far ends
    except jinja2.TemplateError as error:
        raise InputError("chat template", "", template[:60], f"cannot be rendered: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("chat template", "", template[:60], f"fails on these messages: {error}") from error
    return "".join(blocks), spans


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    """The template as a program in a sandbox of its own."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    from jinja2.utils import Namespace

    if len(template) > MOST_CHARACTERS:
        raise InputError("chat template", "length", len(template), f"is over the limit of {MOST_CHARACTERS} characters")

    class Generation(Extension):
        """`{% generation %}`: its body is written where it stands, and noted."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_write", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _write(self, context: Mapping[str, Any], caller: Callable[[], str]) -> str:
            text = caller()
            context[NOTE](text)
            return text

    class Attributes(Namespace):
        """A namespace whose names never start with an underscore: those reach into Python."""

        def __init__(*given: Any, **named: Any) -> None:
            self, *rest = given
            attributes = dict(*rest, **named)
            for name in attributes:
                _checked(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace.__setitem__(self, _checked(name), value)

    class Dict:
        """`dict(...)` without the attributes of Python's own."""

        def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
            return dict(*given, **named)

        def fromkeys(self, *given: Any) -> dict[Any, Any]:
            return dict.fromkeys(*given)

    def _checked(name: str) -> str:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"{name!r} starts with an underscore")
        return name

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Attributes,
    }
    return environment.from_string(template)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` of chat templates; Jinja's own would escape < and > for HTML.

    >>> to_json({"a": "<é>"})
    '{"a": "<é>"}'
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """The same in plain JSON types; what is none of them becomes its type's name, so no template can call its methods."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [*map(_plain, value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    """A message in plain data, its reasoning under the names that templates read."""
    if not isinstance(message, Mapping):
        raise InputError("messages", "", type(message).__name__, "must be objects with a role and a content")
    plain = _plain(message)
    reasoning = next((plain[name] for name in REASONING if plain.get(name) is not None), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def assistant_mask(vocabulary: byte_bpe.Vocabulary, text: str, spans: Iterable[Span]) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and, for each, 1 if any character it stands for is in a span, else 0.

    A character may take several tokens, and a token may straddle the edge of a span: both count as the assistant's.

    Raises:
        ValueError: the vocabulary rewrites the text, so its tokens joined are not the text.
    """
    ids = byte_bpe.encode(vocabulary, text)
    tokens = [vocabulary.tokens[number] for number in ids]
    if b"".join(tokens) != text.encode():
        raise ValueError(f"{vocabulary.name} rewrites the text: tokens have {sum(map(len, tokens))} bytes")
    ends_T = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    starts_T = ends_T - [len(token) for token in tokens]
    byte_of_C = np.cumsum([0, *(len(character.encode()) for character in text)])
    mask_T = np.zeros(len(ids), np.int64)
    for start, end in spans:
        if start < end:
            mask_T |= (starts_T < byte_of_C[end]) & (ends_T > byte_of_C[start])
    return ids, mask_T.tolist()


def apply(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """`render` with all it takes in one mapping (chat templates, 2023)."""
    return render(template, messages, **variables)


TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{%- if tools %}\n{{ '<|im_start|>system\\n# Tools\\n' }}\n"
        "{%- for tool in tools %}\n{{ tool | tojson }}\n{% endfor %}\n{{- '<|im_end|>\\n' }}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' }}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\n"
        "    {%- else %}{{ message.content + '<|im_end|>' }}{% endif %}\n    {{- '\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "headers": (
        "{% set ns = namespace(count=0) %}{{ bos_token }}{% for m in messages %}{% set ns.count = ns.count + 1 %}"
        "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{% if m['role'] == 'assistant' %}"
        "{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{% generation %}{{ m['content'] | trim }}<|eot_id|>{% endgeneration %}{% else %}"
        "{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}{{ ns.count }} {{ strftime_now('%j') | length }}"
    ),
    "turns": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
        "{% generation %} {{ m.content }}</s>{% endgeneration %}{% else %}"
        "{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}"
    ),
}
"""Templates of the three usual shapes, written for the tests."""


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    words = ("Hello", "naïve <b>", "世界", "🤖", "  spaced  ", "line\nbreak", "{{ 7 * 7 }}", "", '"quoted"')
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}] if rng.integers(2) else []
    for turn in range(int(rng.integers(1, 5))):
        text = " ".join(rng.choice(words, int(rng.integers(0, 4))))
        messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
        if turn % 2 and rng.integers(2):
            messages[-1][str(rng.choice(REASONING))] = "why not"
    tool = {"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"n": [1, 2.5, None, True]}}}
    variables = {
        "add_generation_prompt": bool(rng.integers(2)),
        "tools": [tool] if rng.integers(2) else None,
        "bos_token": "<s>",
    }
    return {"template": TEMPLATES[str(rng.choice([*TEMPLATES]))], "messages": messages, "variables": variables}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    turns = [{"role": "assistant" if turn % 2 else "user", "content": "word " * 100} for turn in range(200)]
    return {"template": TEMPLATES["chatml"], "messages": turns, "variables": {"add_generation_prompt": True}}


CHAT_TEMPLATE = Procedure(
    reference=apply,
    examples=_examples,
    paper="https://huggingface.co/docs/transformers/chat_templating (2023); mask: arXiv:2203.02155",
    shapes={"200 turns of 100 words": _timed},
)
