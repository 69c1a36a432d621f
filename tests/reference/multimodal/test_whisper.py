"""What only Whisper has."""

import numpy as np
import pytest

from llmlab.reference.models._encoder_decoder import decode_step
from llmlab.reference.models._stack import drawn
from llmlab.reference.multimodal.whisper import (
    HOP,
    RATE_HZ,
    WhisperConfig,
    convolved,
    encode,
    log_mel,
    mel_filters,
    sinusoids,
    tiny_config,
    whisper,
)
from tests.reference.models.encoder_laws import (
    assert_close,
    assert_cutting_targets_changes_nothing,
    assert_every_weight_matters,
    count,
)

RNG = np.random.default_rng(0)
CONFIG = tiny_config()
WEIGHTS = drawn(CONFIG.weight_shapes(), RNG)
SOUND, TARGET = RNG.standard_normal((2, 12 * HOP)), RNG.integers(0, 31, (2, 6))


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)[None]


def test_decoding_token_by_token_equals_decoding_at_once() -> None:
    inputs = {"source": log_mel(SOUND, bands=7), "keep_BM": None, "target_BT": TARGET}
    assert_cutting_targets_changes_nothing(encode, decode_step, CONFIG, WEIGHTS, inputs)


def test_a_tone_is_brightest_in_the_band_that_holds_it() -> None:
    filters, hertz = mel_filters(80), np.linspace(0, RATE_HZ / 2, 201)
    for frequency in (300.0, 1000.0, 3500.0):
        band = log_mel(tone(frequency))[0].mean(1).argmax()
        low, high = hertz[filters[band] > 0][[0, -1]]
        assert low - 40 <= frequency <= high + 40  # a bin is 40 Hz wide


def test_twice_as_loud_is_the_same_picture_a_little_brighter() -> None:
    quiet, loud = log_mel(tone(440)), log_mel(2 * tone(440))
    np.testing.assert_allclose(loud - quiet, np.log10(4) / 4, atol=1e-6)


def test_nothing_is_more_than_80_dB_below_the_loudest() -> None:
    picture = log_mel(tone(440))
    assert picture.max() - picture.min() == pytest.approx(8 / 4)


def test_filters_have_area_one_and_mels_are_linear_below_a_kilohertz() -> None:
    filters = mel_filters(80)
    centres = np.linspace(0, RATE_HZ / 2, 201)[filters.argmax(1)]
    low = centres[centres < 900]
    assert np.abs(np.diff(low, 2)).max() <= 40.0 + 1e-9  # equally spaced up to one bin
    wide = filters[(filters > 0).sum(1) > 8]
    np.testing.assert_allclose(wide.sum(1) * 40.0, 1, atol=0.02)


def test_the_front_end_is_the_feature_extractors() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    theirs = extractor(tone(700)[0], sampling_rate=RATE_HZ, return_tensors="np").input_features[0]
    filled = np.pad(tone(700), ((0, 0), (0, 30 * RATE_HZ - tone(700).shape[1])))
    np.testing.assert_allclose(log_mel(filled)[0], theirs, atol=1e-4)  # it computes in float32 and says so itself


def test_convolutions_are_torchs() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    weights = {"c.weight": RNG.standard_normal((5, 4, 3)), "c.bias": RNG.standard_normal(5)}
    x = RNG.standard_normal((2, 9, 4))
    for stride in (1, 2):
        tensors = (torch.from_numpy(a) for a in (np.moveaxis(x, 1, 2).copy(), weights["c.weight"], weights["c.bias"]))
        theirs = torch.nn.functional.conv1d(*tensors, stride=stride, padding=1).transpose(1, 2).numpy()
        np.testing.assert_allclose(convolved(weights, "c", x, stride=stride), theirs, rtol=1e-10, atol=1e-12)


def test_the_fixed_table_is_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper", reason="needs transformers")
    np.testing.assert_allclose(sinusoids(20, 12), modeling.sinusoids(20, 12).numpy(), atol=2e-6)


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: whisper(CONFIG, w, SOUND, TARGET)["logits"], WEIGHTS)


def test_the_published_tiny_model_has_its_size() -> None:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in _TINY.items()}
    config = WhisperConfig.from_dict({"model_type": "whisper", "d_model": 384, "vocab_size": 51865, **sides})
    assert count(config.weight_shapes()) == 37_760_640  # 39 M in table 1, which rounds up from the weights and their positions


_TINY = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="10 frames: the table of positions is for 12"):
        whisper(CONFIG, WEIGHTS, SOUND[:, : 10 * HOP], TARGET)
    with pytest.raises(ValueError, match="200 samples"):
        log_mel(np.zeros((1, 200)))
    assert_close(log_mel(SOUND[:1]), log_mel(SOUND)[:1])  # sounds of a batch do not see each other
