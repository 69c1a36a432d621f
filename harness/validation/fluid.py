"""The mean behaviour of a busy closed loop over prefill and decode workers, where simulating every token would take minutes.

N clients circle through P prefill and D decode workers. With s(b) seconds of a decode step of b requests and a prompt taking
1/m seconds of a prefill worker, the loop settles where

    N = X (W + (O - 1) s(b)),   b = X (O - 1) s(b) / D,   X <= P m

X being requests per second, O output tokens and W the wait for the first token: a prompt's own time, or whatever keeps the
rate at P m where the prefill workers are the bottleneck. All clients start at once; that first round waits N / (2 P m).
"""

from __future__ import annotations

from collections.abc import Callable


def settled(
    clients: int,
    output_tokens: float,
    prompts_per_s: float,
    prompt_s: float,
    step_s: Callable[[float], float],
    decode_workers: int,
    most_per_worker: float,
    rounds: int = 10,
) -> dict[str, float]:
    """Mean time to first token, per output token and end to end in seconds, and requests per second.

    Args:
        clients: requests in the loop.
        output_tokens: of one request.
        prompts_per_s: of all prefill workers, at most.
        prompt_s: one prompt on an idle worker.
        step_s: seconds of a decode step by the requests in it.
        decode_workers: how many generate.
        most_per_worker: requests one of them can hold.
        rounds: requests per client; the first waits for all prompts.

    >>> found = settled(10, 101.0, 1e9, 0.0, lambda b: 0.01, 1, 100.0, rounds=10**9)
    >>> round(found["tpot_s"], 4), round(found["requests_per_s"], 3)
    (0.01, 10.0)
    """
    steps = max(output_tokens - 1.0, 1.0)
    low, high = 1e-9, min(clients / decode_workers, most_per_worker)
    for _ in range(60):  # requests on one decode worker, by halving: demand falls as the batch grows
        batch = 0.5 * (low + high)
        rate = decode_workers * batch / (steps * step_s(batch))
        waiting = rate * prompt_s
        if rate > prompts_per_s or decode_workers * batch + waiting > clients:
            high = batch
        else:
            low = batch
    batch = 0.5 * (low + high)
    tpot_s = step_s(batch)
    rate = decode_workers * batch / (steps * tpot_s)
    later_s = max(prompt_s, clients / rate - steps * tpot_s)
    first_s = max(prompt_s, 0.5 * clients / prompts_per_s)
    ttft_s = (first_s + (rounds - 1) * later_s) / rounds
    e2e_s = ttft_s + steps * tpot_s
    return {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s, "requests_per_s": clients / e2e_s}
