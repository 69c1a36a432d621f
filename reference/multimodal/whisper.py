"""Whisper (Radford et al. 2022, arXiv:2212.04356): sound to a log-mel picture, the picture to text.

Pre-norm encoder-decoder with GELU; two convolutions in front halve the frames. Axes: B sound, L sample, C mel band, J frame,
M encoder position (J/2), T target position, D width, W kernel tap, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers._activation import named
from llmlab.reference.layers.embedding import embedding
from llmlab.reference.models._config import Fields
from llmlab.reference.models._encoder_decoder import EncoderDecoder, decode_step
from llmlab.reference.models._fairseq import both_sides, stack
from llmlab.reference.models._stack import drawn, norm, run, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Procedure

RATE_HZ, WINDOW, HOP = 16_000, 400, 160
"""Samples per second; samples of a window (25 ms) and between windows (10 ms), section 2.2."""


def mel_filters(bands: int) -> np.ndarray:
    """Return weight_CF: triangles over the F = 201 frequencies of a window, equally wide in mel, each of area one.

    Slaney's mel scale (Auditory Toolbox, 1998), which the released code takes from librosa: linear below 1 kHz, 200/3 Hz a mel,
    then 27 steps for every factor of 6.4.

    Raises:
        ValueError: no bands.
    """
    if bands < 1:
        raise ValueError(f"bands={bands}: must be at least 1")
    mel_of_1khz, steps = 15.0, 27 / np.log(6.4)
    top = mel_of_1khz + steps * np.log(RATE_HZ / 2 / 1000)
    mel_E = np.linspace(0, top, bands + 2)
    edge_E = np.where(mel_E < mel_of_1khz, mel_E * 200 / 3, 1000 * np.exp((mel_E - mel_of_1khz) / steps))
    hertz_F = np.linspace(0, RATE_HZ / 2, 1 + WINDOW // 2)
    rising_CF = (hertz_F - edge_E[:-2, None]) / np.diff(edge_E)[:-1, None]
    falling_CF = (edge_E[2:, None] - hertz_F) / np.diff(edge_E)[1:, None]
    return np.maximum(0, np.minimum(rising_CF, falling_CF)) * (2 / (edge_E[2:] - edge_E[:-2]))[:, None]


def log_mel(samples_BL: np.ndarray, *, bands: int = 80) -> np.ndarray:
    """Return picture_BCJ, J = L / 160 frames of log power in mel bands, scaled to about -1..1 (section 2.2).

    Windows are centred on their frame, the sound mirrored at its ends. Whatever lies more than 80 dB below the loudest point of
    a sound is raised to that.

    Raises:
        ValueError: a sound of 200 samples or fewer, which cannot be mirrored, or no bands.

    >>> log_mel(np.zeros((1, 1600))).shape, float(log_mel(np.zeros((1, 1600))).max())  # silence: 1e-10 is the floor
    ((1, 80, 10), -1.5)
    """
    L = samples_BL.shape[1]
    if L <= WINDOW // 2:
        raise ValueError(f"{L} samples: more than {WINDOW // 2} are needed to mirror the ends")
    mirrored_BL = np.pad(samples_BL, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    frames_BJW = np.lib.stride_tricks.sliding_window_view(mirrored_BL, WINDOW, axis=1)[:, ::HOP][:, : L // HOP]
    hann_W = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power_BJF = np.abs(np.fft.rfft(frames_BJW * hann_W, axis=-1)) ** 2
    level_BCJ = np.log10(np.maximum(np.einsum("cf,bjf->bcj", mel_filters(bands), power_BJF), 1e-10))
    return (np.maximum(level_BCJ, level_BCJ.max((1, 2), keepdims=True) - 8) + 4) / 4


def convolved(weights: Weights, name: str, x_BJC: np.ndarray, *, stride: int) -> np.ndarray:
    """A convolution over three neighbouring frames, zeros beyond the ends; return y_BJD, every `stride`-th frame."""
    padded_BJC = np.pad(x_BJC, ((0, 0), (1, 1), (0, 0)))
    taps_BJCW = np.lib.stride_tricks.sliding_window_view(padded_BJC, 3, axis=1)[:, ::stride]
    return np.einsum("bjcw,dcw->bjd", taps_BJCW, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


@dataclass(frozen=True)
class WhisperConfig(EncoderDecoder):
    """Both stacks, mel bands, rows of the tables."""

    bands: int
    source_positions: int
    target_positions: int

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> WhisperConfig:
        """Read a `config.json` of model_type whisper.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        f.choice("model_type", ("whisper",))
        encoder, decoder = (
            stack(f, side, pre_norm=True, unbiased=frozenset({"key", "cross_key"})) for side in ("encoder", "decoder")
        )
        positions = f.count("max_source_positions", 1500), f.count("max_target_positions", 448)
        return cls(encoder, decoder, f.count("vocab_size"), f.count("num_mel_bins", 80), *positions)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D, e, d = self.encoder.width, "model.encoder.", "model.decoder."
        shapes: dict[str, tuple[int, ...]] = {
            f"{e}conv1.weight": (D, self.bands, 3),
            f"{e}conv2.weight": (D, D, 3),
            f"{e}embed_positions.weight": (self.source_positions, D),
            f"{d}embed_tokens.weight": (self.vocab_size, D),
            f"{d}embed_positions.weight": (self.target_positions, D),
        }
        biases = ("conv1.bias", "conv2.bias", "layer_norm.weight", "layer_norm.bias")
        shapes |= {f"{e}{name}": (D,) for name in biases} | {f"{d}layer_norm.{kind}": (D,) for kind in ("weight", "bias")}
        return shapes | self.encoder.shapes() | self.decoder.shapes()

    def embedded(self, weights: Weights, side: str, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """Token and position of a target; what goes into the encoder is no tokens, see `encode`."""
        tokens_BTD = embedding(ids_BT, weights["model.decoder.embed_tokens.weight"])
        return tokens_BTD + embedding(positions_BT, weights["model.decoder.embed_positions.weight"])

    def finished(self, weights: Weights, side: str, x_BTD: np.ndarray) -> np.ndarray:
        """The last norm of a pre-norm stack."""
        return norm(self.encoder, weights, f"model.{side}.layer_norm", x_BTD)

    def logits(self, weights: Weights, x_BTD: np.ndarray) -> np.ndarray:
        """By the table of tokens."""
        return x_BTD @ weights["model.decoder.embed_tokens.weight"].T


def sinusoids(positions: int, width: int) -> np.ndarray:
    """The encoder's fixed table_MD: all sines, then all cosines, the slowest of period 2 pi 10000 (the released code)."""
    speed_R = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angle_MR = np.arange(positions)[:, None] * speed_R
    return np.concatenate([np.sin(angle_MR), np.cos(angle_MR)], axis=1)


def encode(config: WhisperConfig, weights: Weights, picture_BCJ: np.ndarray) -> np.ndarray:
    """Return memory_BMD of a log-mel picture.

    Raises:
        ValueError: another length than the table of positions is for (30 s in the released models).
    """
    gelu, e = named("gelu")[0], "model.encoder."
    x_BJD = gelu(convolved(weights, f"{e}conv1", np.moveaxis(picture_BCJ, 1, 2), stride=1))
    x_BMD = gelu(convolved(weights, f"{e}conv2", x_BJD, stride=2))
    if x_BMD.shape[1] != config.source_positions:
        raise ValueError(f"{picture_BCJ.shape[2]} frames: the table of positions is for {2 * config.source_positions}")
    x_BMD, _ = run(config.encoder, weights, x_BMD + weights[f"{e}embed_positions.weight"])
    return config.finished(weights, "encoder", x_BMD)


def whisper(config: WhisperConfig, weights: Weights, samples_BL: np.ndarray, target_BT: np.ndarray) -> dict[str, np.ndarray]:
    """Score every next token of the targets, given the whole sounds; return {"picture": picture_BCJ, "logits": logits_BTV}.

    Sounds are 16,000 samples per second in -1..1, cut or filled up with silence to 2 M frames of 160 samples.

    Raises:
        ValueError: a sound of another length, a weight that is missing or misshapen, an id or a position outside its table.

    >>> config = tiny_config()
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> whisper(config, zeros, np.zeros((1, 1920)), np.array([[1, 2]]))["logits"].shape
    (1, 2, 31)
    """
    check_shapes("whisper", config.weight_shapes(), weights)
    picture_BCJ = log_mel(samples_BL, bands=config.bands)
    return {
        "picture": picture_BCJ,
        "logits": decode_step(config, weights, target_BT, encode(config, weights, picture_BCJ))[0],
    }


_TINY = {
    "model_type": "whisper", "d_model": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19, "vocab_size": 31, "num_mel_bins": 7,
    "max_source_positions": 6, "max_target_positions": 9,
}  # fmt: skip


def tiny_config() -> WhisperConfig:
    """Two encoder layers and one decoder layer for sounds of 12 frames."""
    return WhisperConfig.from_dict(_TINY, "tiny whisper")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config, B = tiny_config(), int(rng.integers(1, 4))
    time_L = np.arange(2 * config.source_positions * HOP) / RATE_HZ
    tones = [np.sin(2 * np.pi * rng.uniform(100, 7000) * time_L) * rng.uniform(0.01, 1) for _ in range(B)]
    samples_BL = np.stack(tones) + 0.01 * rng.standard_normal((B, len(time_L)))
    target_BT = rng.integers(0, config.vocab_size, (B, int(rng.integers(1, 8))))
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), "samples_BL": samples_BL, "target_BT": target_BT}


def _same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> bool:
    return expected.keys() == actual.keys() and all(same_logits(expected[name], actual[name]) for name in expected)


def _released_tiny(rng: np.random.Generator) -> dict[str, Any]:
    both = both_sides(layers=4, attention_heads=6, ffn_dim=1536)
    config = WhisperConfig.from_dict(
        {"model_type": "whisper", "d_model": 384, "vocab_size": 51865, "max_source_positions": 150, **both}
    )
    samples_BL = rng.standard_normal((1, 3 * RATE_HZ), dtype=np.float32)
    target_BT = rng.integers(0, config.vocab_size, (1, 16))
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, "samples_BL": samples_BL, "target_BT": target_BT}


WHISPER = Procedure(
    reference=whisper,
    examples=_examples,
    paper="arXiv:2212.04356",
    same=_same,
    shapes={"whisper-tiny, 3 s, 16 tokens": _released_tiny},
)
