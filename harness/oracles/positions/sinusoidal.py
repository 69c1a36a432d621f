"""Sinusoidal positions as DistilBERT fills its table (sine and cosine side by side, as in the paper)."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.sinusoidal import SINUSOIDAL


@oracle(SINUSOIDAL, library="transformers DistilBERT sinusoidal embeddings", dtype="float32", needs=("torch", "transformers"))
def sinusoidal(x_BTD: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
    import torch
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

    table_PD = torch.empty(int(positions_BT.max()) + 1, x_BTD.shape[-1])
    create_sinusoidal_embeddings(*table_PD.shape, out=table_PD)
    return x_BTD + table_PD[torch.from_numpy(positions_BT)].numpy()


@oracle(SINUSOIDAL, library="exact enumeration: powers of a complex number, one wavelength at a time")
def by_complex_numbers(x_BTD: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
    out_BTD = x_BTD.copy()
    D = x_BTD.shape[-1]
    for r in range(D // 2):
        turn_BT = np.exp(1j * positions_BT / 10000 ** (2 * r / D))
        out_BTD[..., 2 * r] += turn_BT.imag
        out_BTD[..., 2 * r + 1] += turn_BT.real
    return out_BTD
