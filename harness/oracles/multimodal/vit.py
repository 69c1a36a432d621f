"""ViT by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.multimodal.vit import VIT, VitConfig


@oracle(VIT, library="transformers.ViTForImageClassification", needs=("transformers", "torch"))
def vit(config: VitConfig, weights: Weights, pixels_BCIJ: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    s = config.stack
    theirs = transformers.ViTConfig(
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        intermediate_size=s.hidden,
        image_size=config.image,
        patch_size=config.patch,
        num_channels=config.channels,
        num_labels=config.classes,
        layer_norm_eps=s.eps,
        attn_implementation="eager",
    )
    model = loaded(transformers.ViTForImageClassification(theirs), weights)
    with torch.no_grad():
        return model(pixel_values=torch.from_numpy(pixels_BCIJ)).logits.numpy()
