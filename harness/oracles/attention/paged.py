"""PyTorch's experimental PagedAttention, and its dense attention over gathered pages, as oracles of attention.paged."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.attention.paged import PAGED


@oracle(PAGED, library="torch.nn.functional.scaled_dot_product_attention over gathered pages", needs=("torch",))
def gathered(
    q_UKGH: np.ndarray,
    k_pages_PCKH: np.ndarray,
    v_pages_PCKH: np.ndarray,
    table_BM: np.ndarray,
    query_starts_Z: np.ndarray,
    context_B: np.ndarray,
) -> np.ndarray:
    import torch

    out_UNH = torch.zeros(q_UKGH.shape[0], q_UKGH.shape[1] * q_UKGH.shape[2], q_UKGH.shape[3], dtype=torch.float64)
    k_pages, v_pages, table = torch.tensor(k_pages_PCKH), torch.tensor(v_pages_PCKH), torch.tensor(table_BM)
    for b, context in enumerate(context_B):
        start, end = query_starts_Z[b : b + 2]
        if start == end or not context:
            continue
        k_KSH, v_KSH = (pages[table[b]].flatten(0, 1)[:context].transpose(0, 1) for pages in (k_pages, v_pages))
        q_NTH = torch.tensor(q_UKGH[start:end]).flatten(1, 2).transpose(0, 1)
        seen_TS = torch.arange(context) <= torch.arange(context - (end - start), context)[:, None]
        out_UNH[start:end] = torch.nn.functional.scaled_dot_product_attention(
            q_NTH[None], k_KSH[None], v_KSH[None], attn_mask=seen_TS, enable_gqa=True
        )[0].transpose(0, 1)
    return out_UNH.reshape(q_UKGH.shape).numpy()


@oracle(PAGED, library="torch.nn.attention.experimental._paged_attention.PagedAttention", needs=("torch",))
def paged_flex(
    q_UKGH: np.ndarray,
    k_pages_PCKH: np.ndarray,
    v_pages_PCKH: np.ndarray,
    table_BM: np.ndarray,
    query_starts_Z: np.ndarray,
    context_B: np.ndarray,
) -> np.ndarray:
    import warnings

    import torch
    from torch.nn.attention.experimental._paged_attention import PagedAttention
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    P, C = k_pages_PCKH.shape[:2]
    out_UKGH = np.zeros_like(q_UKGH)
    k_1KSH, v_1KSH = (torch.tensor(x).flatten(0, 1).transpose(0, 1)[None] for x in (k_pages_PCKH, v_pages_PCKH))
    for b, context in enumerate(int(context) for context in context_B):
        start, end = (int(edge) for edge in query_starts_Z[b : b + 2])
        used = -(-context // C)
        if start == end or not context or len(set(table_BM[b, :used])) < used:
            out_UKGH[start:end] = gathered(
                q_UKGH[start:end],
                k_pages_PCKH,
                v_pages_PCKH,
                table_BM[b : b + 1],
                np.array([0, end - start]),
                context_B[b : b + 1],
            )
            continue  # its inverse table cannot name a page twice
        book = PagedAttention(n_pages=P, page_size=C, max_batch_size=1, device="cpu")
        pages = torch.tensor(table_BM[b, :used].astype(np.int64))
        book.page_table[0, :used] = pages
        book.physical_to_logical[0, pages] = torch.arange(used)
        book.capacity[0] = used * C
        before = context - (end - start)

        def seen(b: torch.Tensor, n: torch.Tensor, t: torch.Tensor, s: torch.Tensor, before: int = before) -> torch.Tensor:
            return t + before >= s

        logical = create_block_mask(seen, 1, None, end - start, used * C, device="cpu", BLOCK_SIZE=C)
        q_1NTH = torch.tensor(q_UKGH[start:end]).flatten(1, 2).transpose(0, 1)[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks to be compiled
            out_1NTH = flex_attention(
                q_1NTH, k_1KSH, v_1KSH, block_mask=book.convert_logical_block_mask(logical), enable_gqa=True
            )
        out_UKGH[start:end] = out_1NTH[0].transpose(0, 1).reshape(end - start, *q_UKGH.shape[1:]).numpy()
    return out_UKGH
