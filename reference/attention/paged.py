"""PagedAttention: keys and values in pages of a pool, found through block tables (Kwon et al. 2023, arXiv:2309.06180).

Axes: B request, U query tokens of all requests, Z = B + 1 boundaries, P page of the pool, C tokens of a page,
M entries of a block table, K key/value head, G query heads per key/value head, H head width; T mean query tokens of a request.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend, causal_pairs, causal_TS
from llmlab.reference.attention.varlen import boundaries, require_boundaries
from llmlab.reference.op import Cost, Dims, Op


def paged(
    q_UKGH: np.ndarray,
    k_pages_PCKH: np.ndarray,
    v_pages_PCKH: np.ndarray,
    table_BM: np.ndarray,
    query_starts_Z: np.ndarray,
    context_B: np.ndarray,
) -> np.ndarray:
    """Attend each request's new tokens to its cached context; return out_UKGH.

    Request b owns queries query_starts[b] to query_starts[b + 1]: one of them is decode, several are (a chunk of) prefill.
    Its context is context[b] tokens, the new ones included and already stored: token s lies in page table[b, s // C] at
    offset s % C. The last query sits at position context - 1. Table entries past the context may hold anything.

        out = softmax(q k' / sqrt(H)) v        over the keys up to the query's own position

    A query that sees nothing gives zeros (an empty context, a query before position 0, a token past the last boundary).
    A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: a context is negative or longer than its table, the boundaries decrease or pass the end of the
            tokens, or a table entry within the context names no page.

    >>> pages = np.array([[7.0], [1.0], [5.0]]).reshape(3, 1, 1, 1)      # three pages of one token
    >>> zero = np.zeros((3, 1, 1, 1))                                    # a decode, then a prefill of two tokens
    >>> paged(zero, pages, pages, np.array([[2, 0], [1, 2]]), np.array([0, 1, 3]), np.array([2, 2])).ravel()
    array([6., 1., 3.])
    """
    P, C = k_pages_PCKH.shape[:2]
    require_boundaries("query_starts", query_starts_Z, len(q_UKGH))
    require_table(table_BM, context_B, P, C)
    out_UKGH = np.zeros_like(q_UKGH)
    for b, context in enumerate(int(context) for context in context_B):
        queries = slice(int(query_starts_Z[b]), int(query_starts_Z[b + 1]))
        s = np.arange(context)
        page_S, offset_S = table_BM[b, s // C], s % C
        k_1SKH, v_1SKH = k_pages_PCKH[page_S, offset_S][None], v_pages_PCKH[page_S, offset_S][None]
        seen_TS = causal_TS(queries.stop - queries.start, context)
        out_UKGH[queries] = attend(q_UKGH[queries][None], k_1SKH, v_1SKH, seen_TS)[0]
    return out_UKGH


def require_table(table_BM: np.ndarray, context_B: np.ndarray, P: int, C: int) -> None:
    """Refuse contexts that do not fit their table and table entries that name no page of the pool."""
    for b, context in enumerate(int(context) for context in context_B):
        if not 0 <= context <= table_BM.shape[1] * C:
            raise ValueError(f"context[{b}]={context} must lie between 0 and {table_BM.shape[1]} pages of {C}")
        used = table_BM[b, : -(-context // C)]
        if used.size and not 0 <= used.min() <= used.max() < P:
            raise ValueError(f"table[{b}] names pages {used.min()} to {used.max()} of a pool of {P}")


def paged_cost(d: Dims) -> Cost:
    """Both matmuls over the seen pairs, 2 FLOPs per multiply-add, every request having T new tokens and a full table.

    A page is read once by each request that uses it. For unequal requests sum the costs of the requests. Shared pages
    and pools smaller than B tables are read at most once per pool page from memory.
    """
    heads = d["K"] * d["G"]
    context = d["M"] * d["C"]
    stored = min(d["B"] * d["M"], d["P"]) * d["C"]
    return Cost(
        flops=4 * d["B"] * heads * causal_pairs(d["T"], context) * d["H"],
        elements_read=d["H"] * (heads * d["U"] + 2 * d["K"] * stored) + d["B"] * d["M"] + d["Z"] + d["B"],
        elements_written=d["H"] * heads * d["U"],
    )


def block_table(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Pages in random order; no page twice where the pool is large enough, as an allocator would give them."""
    entries = d["B"] * d["M"]
    pages = rng.permutation(d["P"])[:entries] if entries <= d["P"] else rng.integers(0, d["P"], entries)
    return pages.reshape(d["B"], d["M"])


def contexts(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Any length, empty too, for short tables; within the last page of long ones, so that the cost is that of what is timed."""
    whole = d["M"] * d["C"]
    return rng.integers(0 if d["M"] <= 4 else whole - d["C"] + 1, whole + 1, size=d["B"])


PAGED = Op(
    reference=paged,
    cost=paged_cost,
    dims={
        "B": range(1, 4),
        "T": range(1, 4),
        "M": range(1, 5),
        "C": range(1, 6),
        "P": range(1, 14),
        "K": range(1, 4),
        "G": range(1, 4),
        "H": range(1, 20),
    },
    derived={"U": lambda d: d["B"] * d["T"], "Z": lambda d: d["B"] + 1},
    draw={
        "table_BM": block_table,
        "query_starts_Z": lambda d, rng: (
            np.arange(d["B"] + 1) if d["T"] == 1 and d["M"] > 4 else boundaries(d["B"], d["U"], rng)
        ),
        "context_B": contexts,
    },
    shapes={
        "llama-3-8b decode 2k batch 16": {"B": 16, "T": 1, "M": 128, "C": 16, "P": 2048, "K": 8, "G": 4, "H": 128},
        "llama-3-8b chunk 256 at 1k": {"B": 1, "T": 256, "M": 64, "C": 16, "P": 256, "K": 8, "G": 4, "H": 128},
    },
    paper="arXiv:2309.06180",
    empty=("B",),
    nonfinite=("q_UKGH",),
    powers={"B": 1, "M": 1, "C": 1, "K": 1, "G": 1, "H": 1},
)
