"""CLIP by transformers."""

from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._stack import Stack
from llmlab.reference.models._weights import Weights
from llmlab.reference.multimodal.clip import CLIP, ClipConfig


def sizes(stack: Stack) -> dict[str, Any]:
    return {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.hidden,
        "layer_norm_eps": stack.eps,
    }


@oracle(CLIP, library="transformers.CLIPModel", needs=("transformers", "torch"))
def clip(config: ClipConfig, weights: Weights, pixels_BCIJ: np.ndarray, ids_QT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    text = {"vocab_size": config.vocab_size, "max_position_embeddings": config.positions}
    theirs = transformers.CLIPConfig(
        text_config={
            **text,
            **sizes(config.text),
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2 if config.end is None else config.end,
        },
        vision_config={"image_size": config.vision.image, "patch_size": config.vision.patch, **sizes(config.vision.stack)},
        projection_dim=config.shared,
        attn_implementation="eager",
    )
    model = loaded(transformers.CLIPModel(theirs), weights)
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(ids_QT), pixel_values=torch.from_numpy(pixels_BCIJ))
    return found.logits_per_image.numpy()
