"""Multi-token prediction of DeepSeek-V3 (arXiv:2412.19437, section 2.2): modules behind the model, each one token further.

Axes: B batch, T position, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llmlab.reference.layers.embedding import embedding
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import block, hidden_states, linear, norm
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import Weights


def multi_token(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> list[np.ndarray]:
    """Score the token after next, the one after that, ...; return per module k = 1, 2, ... logits of positions 0 to T - k - 1.

        h'_i = M [norm embedding of t_{i+k}; norm h_i of module k - 1]     (eq. 21)
        h = layer(h'),   logits = head norm h                              (eq. 22 and 23)

    Module 0 is the model itself, before its final norm. Embedding and output matrix are the model's own. The paper writes
    [h; embedding]; the published files hold M for the order above, and so does this.

    Raises:
        ValueError: the architecture has no such modules, or there are no more tokens than modules.
    """
    L, modules, T = config.num_hidden_layers, config.num_nextn_predict_layers, ids_BT.shape[1]
    if not modules or modules >= T:
        raise ValueError(f"{config.name}: {modules} modules predict further over {T} tokens; both must be there")
    deeper = _deeper(config)
    outside, layers = unpack(deeper, weights)
    x_BTD, _ = hidden_states(config, outside, layers[:L], ids_BT)
    logits = []
    for k in range(1, modules + 1):
        own = _own(weights, L + k - 1)
        next_BTD = norm(config, own, "enorm", embedding(ids_BT[:, k:], outside["model.embed_tokens.weight"]))
        both = np.concatenate([next_BTD, norm(config, own, "hnorm", x_BTD[:, : T - k])], axis=-1)
        x_BTD, _ = block(deeper, layers[L + k - 1], linear(own, "eh_proj", both), None, layer=L + k - 1)
        head_VD = outside["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
        logits.append(norm(config, own, "shared_head.norm", x_BTD) @ head_VD.T)
    return logits


def multi_token_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules' tensors by their name in the files; the copies of embedding and head there are left out."""
    D, L = config.hidden_size, config.num_hidden_layers
    main = config.weight_shapes()
    shapes = {name: shape for name, shape in _deeper(config).weight_shapes().items() if name not in main}
    for k in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{L + k}."
        shapes |= {f"{prefix}{name}.weight": (D,) for name in ("enorm", "hnorm", "shared_head.norm")}
        shapes[f"{prefix}eh_proj.weight"] = (D, 2 * D)
    return shapes


def _deeper(config: ModelConfig) -> ModelConfig:
    """The modules' layers, which are sparse, counted behind the model's."""
    more = config.num_nextn_predict_layers
    sparse = (*config.sparse_layers, *[True] * more)
    return replace(config, num_hidden_layers=config.num_hidden_layers + more, sparse_layers=sparse)


def _own(weights: Weights, layer: int) -> dict[str, np.ndarray]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
