"""The shape of one engine step, as far as its duration depends on it. Units: tokens and requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What one step computes.

    Attributes:
        prefill: one pair per request with more than one new token: (new tokens, tokens already in its cache).
        decode_requests: requests that compute one token each.
        decode_context_tokens: tokens those attend to, summed over the requests, the new token included.
        emitted: requests that emit a token in this step (rows of the output projection and of sampling).
    """

    prefill: tuple[tuple[int, int], ...]
    decode_requests: int
    decode_context_tokens: int
    emitted: int

    @property
    def new_tokens(self) -> int:
        """Tokens that pass through the linear layers."""
        return self.decode_requests + sum(new for new, _ in self.prefill)
