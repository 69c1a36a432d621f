"""Whisper's front end and its encoder-decoder by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.multimodal.whisper import WHISPER, WhisperConfig


@oracle(
    WHISPER, library="transformers.{WhisperFeatureExtractor,WhisperForConditionalGeneration}", needs=("transformers", "torch")
)
def whisper(config: WhisperConfig, weights: Weights, samples_BL: np.ndarray, target_BT: np.ndarray) -> dict[str, np.ndarray]:
    import torch
    import transformers
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    # The extractor's own steps in float64; its __call__ rounds to float32.
    filters = mel_filter_bank(201, config.bands, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    pictures = []
    for samples in samples_BL:
        level = spectrogram(
            samples,
            window_function(400, "hann"),
            frame_length=400,
            hop_length=160,
            power=2.0,
            mel_filters=filters,
            log_mel="log10",
            dtype=np.float64,
        )[:, :-1]
        pictures.append((np.maximum(level, level.max() - 8.0) + 4.0) / 4.0)
    picture = np.stack(pictures).astype(np.float64)
    e, d = config.encoder, config.decoder
    theirs = transformers.WhisperConfig(
        vocab_size=config.vocab_size,
        num_mel_bins=config.bands,
        d_model=e.width,
        encoder_layers=e.layers,
        decoder_layers=d.layers,
        encoder_attention_heads=e.heads,
        decoder_attention_heads=d.heads,
        encoder_ffn_dim=e.hidden,
        decoder_ffn_dim=d.hidden,
        max_source_positions=config.source_positions,
        max_target_positions=config.target_positions,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    model = loaded(transformers.WhisperForConditionalGeneration(theirs), weights, made=("proj_out.weight",))
    with torch.no_grad():
        found = model(input_features=torch.from_numpy(picture), decoder_input_ids=torch.from_numpy(target_BT))
    return {"picture": picture, "logits": found.logits.numpy()}
