"""What only chat templates have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.tokenizers import chat_template
from llmlab.reference.tokenizers.byte_bpe import babble, train
from llmlab.reference.tokenizers.chat_template import CHAT_TEMPLATE, TEMPLATES, apply, assistant_mask, render

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 7 * 6?"},
    {"role": "assistant", "content": "Forty-two 🤖"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def test_spans_hold_what_the_assistant_wrote() -> None:
    text, spans = render(TEMPLATES["chatml"], CHAT)
    assert [text[start:end] for start, end in spans] == ["Forty-two 🤖<|im_end|>", "Yes.<|im_end|>"]


def test_a_message_is_never_run_as_a_template() -> None:
    text, _ = render(TEMPLATES["turns"], [{"role": "user", "content": "{{ 7 * 7 }}{% generation %}"}], bos_token="<s>")
    assert text == "<s>[INST] {{ 7 * 7 }}{% generation %} [/INST]"


def test_what_a_template_raises_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="no role tool"):
        render(TEMPLATES["turns"], [{"role": "tool", "content": ""}], bos_token="")


ESCAPES = {
    "class": "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ render.__globals__ }}{{ raise_exception.__globals__['sys'] }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace at birth": "{{ namespace(_x=1) }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "mutation": "{{ messages.append(1) }}",
    "range": "{{ range(10000000) | list | length }}",
    "include": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "endless": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(case: str) -> None:
    """Jinja gives nothing for some forbidden attributes and raises for what is done with them; either way nothing gets out."""
    try:
        text, _ = render(ESCAPES[case], CHAT)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert text.strip() == ""


def test_a_template_sees_plain_data_only(tmp_path: Path) -> None:
    text, _ = render("{{ messages[0].image }} {{ x }} {{ y }}", [{"role": "user", "image": tmp_path}], x=np.int64(3), y=(1, 2))
    assert text == f"<{type(tmp_path).__name__}> 3 (1, 2)"
    with pytest.raises(InputError, match="role and a content"):
        render("x", ["hello"])  # type: ignore[list-item]


def test_a_template_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_CHARACTERS", 10)
    with pytest.raises(InputError, match="limit of 10"):
        render("{{ messages }}", CHAT)


def test_the_comparison_refuses_one_wrong_span() -> None:
    example = CHAT_TEMPLATE.examples(np.random.default_rng(1))
    text, spans = apply(**example)
    assert CHAT_TEMPLATE.same((text, spans), (text, list(spans)))
    assert not CHAT_TEMPLATE.same((text, spans), (text, [*spans, (0, 1)]))


# The mask


def test_every_token_of_the_assistant_is_masked_and_no_other() -> None:
    vocabulary = train([babble(np.random.default_rng(0), 200)], 400, special=["<|im_start|>", "<|im_end|>"])
    text, spans = render(TEMPLATES["chatml"], CHAT)
    ids, mask = assistant_mask(vocabulary, text, spans)
    masked = b"".join(vocabulary.tokens[number] for number, one in zip(ids, mask) if one)
    assert masked.decode() == "".join(text[start:end] for start, end in spans)
    assert len(mask) == len(ids)


def test_an_empty_answer_masks_nothing() -> None:
    vocabulary = train(["x"], 256)
    assert assistant_mask(vocabulary, "abc", [(1, 1)])[1] == [0, 0, 0]


def hugging_face(vocabulary: Any, template: str) -> Any:
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers import PreTrainedTokenizerFast

    from llmlab.harness.oracles.tokenizers.byte_bpe import hugging_face as fast

    return PreTrainedTokenizerFast(tokenizer_object=fast(vocabulary), chat_template=template, bos_token="<s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_mask_are_those_of_apply_chat_template(name: str) -> None:
    vocabulary = train([babble(np.random.default_rng(0), 200)], 400, special=["<s>", "<|im_start|>", "<|im_end|>"])
    theirs = hugging_face(vocabulary, TEMPLATES[name])
    for chat in (CHAT, CHAT[:2], CHAT[:3]):
        found = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        text, spans = render(TEMPLATES[name], chat, bos_token="<s>")
        assert theirs.apply_chat_template(chat, tokenize=False) == text
        assert (found["input_ids"], found["assistant_masks"]) == assistant_mask(vocabulary, text, spans)


def test_transformers_leaves_out_the_last_bytes_of_a_final_character() -> None:
    """It asks for the token of the last character and gets the first of several; their loss would skip half an emoji."""
    vocabulary = train(["x"], 256 + 1, special=["<s>"])
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    chat = [{"role": "assistant", "content": "ab🤖"}]
    found = hugging_face(vocabulary, template).apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    text, spans = render(template, chat)
    assert assistant_mask(vocabulary, text, spans)[1] == [1, 1, 1, 1, 1, 1]
    assert found["assistant_masks"] == [1, 1, 1, 0, 0, 0]
