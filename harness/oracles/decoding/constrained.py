"""outlines_core, llguidance, and trying every token by partial matching."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.constrained import CONSTRAINED

Walk = list[tuple[tuple[int, ...], int]]


def _walked(allowed_after: Callable[[list[int]], Sequence[int]], end: int, choices: Sequence[float]) -> Walk:
    """The walk, by whatever says which tokens may follow which."""
    tokens: list[int] = []
    steps: Walk = []
    for choice in choices:
        allowed = tuple(sorted(allowed_after(tokens)))
        if not allowed:
            break
        steps.append((allowed, allowed[int(choice * len(allowed))]))
        if steps[-1][1] == end:
            break
        tokens.append(steps[-1][1])
    return steps


@oracle(CONSTRAINED, library="outlines_core.Index", needs=("outlines_core",))
def outlines(pattern: str, vocabulary: Sequence[bytes], end: int, choices: Sequence[float]) -> Walk:
    """Asked about the pattern with an end mark behind it.

    Where a text may end, `Index` (0.2.14) leaves out the tokens after which it may not: after "yes" of `yes( no)*` it
    allows " no", not " ". With the mark no state of the pattern itself is one where a text may end.
    """
    from outlines_core import Index, Vocabulary

    mark = b"\x03"
    ids: dict[bytes, list[int]] = {mark: [end]}
    for number, data in enumerate(vocabulary):
        if data and number != end:
            ids.setdefault(data, []).append(number)
    index = Index(f"({pattern})\\x03", Vocabulary(len(vocabulary), ids))

    def allowed_after(tokens: list[int]) -> Sequence[int]:
        state = index.get_initial_state()
        for token in tokens:
            state = index.get_next_state(state, token)
        return set(index.get_allowed_tokens(state) or ())

    return _walked(allowed_after, end, choices)


@oracle(CONSTRAINED, library="llguidance.LLMatcher", needs=("llguidance",))
def llguidance(pattern: str, vocabulary: Sequence[bytes], end: int, choices: Sequence[float]) -> Walk:
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    class Theirs:
        def __init__(self) -> None:
            self.tokens, self.eos_token_id, self.bos_token_id, self.special_token_ids = list(vocabulary), end, None, [end]

        def __call__(self, text: str | bytes) -> list[int]:
            data = text.encode() if isinstance(text, str) else text
            return [self.tokens.index(bytes([byte])) for byte in data if bytes([byte]) in self.tokens]

    tokenizer = LLTokenizer(TokenizerWrapper(Theirs()))

    def allowed_after(tokens: list[int]) -> Sequence[int]:
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(pattern))
        if tokens:
            matcher.consume_tokens(tokens)
        if matcher.is_error():
            raise RuntimeError(matcher.get_error())
        bits = matcher.compute_bitmask()
        return [v for v in range(len(vocabulary)) if bits[v // 8] >> (v % 8) & 1]

    return _walked(allowed_after, end, choices)


@oracle(CONSTRAINED, library="regex.fullmatch(partial=True)", needs=("regex",))
def partial_matching(pattern: str, vocabulary: Sequence[bytes], end: int, choices: Sequence[float]) -> Walk:
    import regex

    def may_go_on(data: bytes) -> bool:
        """Whether some text begins so; a cut character is completed in every way."""
        try:
            return bool(regex.fullmatch(pattern, data.decode(), partial=True))
        except UnicodeDecodeError:
            if data[-1:] != b"\xc3":
                return False
            return any(may_go_on(data + bytes([last])) for last in range(0x80, 0xC0))

    def complete(data: bytes) -> bool:
        try:
            return bool(regex.fullmatch(pattern, data.decode()))
        except UnicodeDecodeError:
            return False

    def allowed_after(tokens: list[int]) -> Sequence[int]:
        data = b"".join(vocabulary[token] for token in tokens)
        going = [v for v, more in enumerate(vocabulary) if v != end and more and may_go_on(data + more)]
        return going + ([end] if complete(data) else [])

    return _walked(allowed_after, end, choices)
