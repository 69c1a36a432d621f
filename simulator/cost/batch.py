"""The shape of one engine step, as far as its duration depends on it. Units: tokens and requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What one step computes, and what it moves first.

    Attributes:
        prefill: one pair per request with more than one new token: (new tokens, tokens already in its cache).
        decode_requests: requests that compute one token each, beside their guesses.
        decode_context_tokens: tokens those attend to, summed over the requests, the new tokens included.
        emitted: requests that emit a token in this step (rows of the output projection and of sampling), and their guesses.
        draft_tokens: guesses that decoding requests verify.
        moved_blocks: KV blocks copied between device and host memory, either way.
        disk_blocks: KV blocks copied between host memory and disk, either way.
        adapters: distinct low-rank adapters of the step's requests.
        adapter_tokens: new tokens that pass through one.
        adapter_loads: adapters copied from host memory to the device.
    """

    prefill: tuple[tuple[int, int], ...]
    decode_requests: int
    decode_context_tokens: int
    emitted: int
    draft_tokens: int = 0
    moved_blocks: int = 0
    disk_blocks: int = 0
    adapters: int = 0
    adapter_tokens: int = 0
    adapter_loads: int = 0

    @property
    def new_tokens(self) -> int:
        """Tokens that pass through the linear layers."""
        return self.decode_requests + self.draft_tokens + sum(new for new, _ in self.prefill)
