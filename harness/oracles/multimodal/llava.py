"""LLaVA by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.harness.oracles.multimodal.clip import sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.multimodal.llava import LLAVA, LlavaConfig


@oracle(LLAVA, library="transformers.LlavaForConditionalGeneration", needs=("transformers", "torch"))
def llava(config: LlavaConfig, weights: Weights, pixels_PCIJ: np.ndarray, ids_BT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    vision, language = config.vision, config.language
    text = transformers.LlamaConfig(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_hidden_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_key_value_heads,
        rms_norm_eps=language.rms_norm_eps,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            image_size=vision.image, patch_size=vision.patch, projection_dim=vision.stack.width, **sizes(vision.stack)
        ),
        text_config=text,
        image_token_index=config.picture_token,
        vision_feature_layer=config.layer - vision.stack.layers - 1,
        vision_feature_select_strategy="full" if config.with_class else "default",
        image_seq_length=config.tokens_per_picture,
        attn_implementation="eager",
    )
    model = loaded(transformers.LlavaForConditionalGeneration(theirs), weights)
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids_BT), pixel_values=torch.from_numpy(pixels_PCIJ)).logits.numpy()
