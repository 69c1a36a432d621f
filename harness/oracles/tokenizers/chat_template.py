"""What transformers' apply_chat_template renders with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.chat_template import CHAT_TEMPLATE, Span


@oracle(CHAT_TEMPLATE, library="transformers.apply_chat_template", needs=("transformers", "jinja2"))
def transformers(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(
        conversations=[messages], chat_template=template, return_assistant_tokens_mask=True, **variables
    )
    return texts[0], [(start, end) for start, end in spans[0]]
