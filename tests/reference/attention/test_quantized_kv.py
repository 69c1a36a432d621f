import numpy as np
import pytest

from llmlab.reference.attention.flash_decoding import flash_decoding
from llmlab.reference.attention.quantized_kv import (
    QUANTIZED_KV,
    packed,
    quantize,
    quantize_keys,
    quantize_values,
    quantized_kv,
    quantized_kv_cost,
    unpacked,
)


def drawn(S: int = 32, outlier: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, 2, 3, 16)), rng.standard_normal((2, S + 5, 2, 16)), rng.standard_normal((2, S + 5, 2, 16))
    k[..., 3] += outlier  # one channel that is large in every token
    return q, k, v


def quantized(q: np.ndarray, k: np.ndarray, v: np.ndarray, bits: int, S: int = 32) -> np.ndarray:
    keys = quantize_keys(k[:, :S], bits=bits, tokens=8, groups=2)
    return quantized_kv(q, *keys, *quantize_values(v[:, :S], bits=bits, groups=2), k[:, S:], v[:, S:])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_and_unpacking_are_inverse(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (2, 3, 2, 16)).astype(np.uint8)
    np.testing.assert_array_equal(unpacked(packed(codes, 2, bits), 16), codes)
    assert packed(codes, 2, bits).size * 8 == codes.size * bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_group_comes_back_within_half_a_step_and_its_ends_exactly(bits: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, 32))
    codes, scale, zero = quantize(x, bits, 1)
    back = codes * scale + zero
    assert (np.abs(back - x) <= scale / 2 * (1 + 1e-12)).all()
    np.testing.assert_allclose(back.max(1), x.max(1), rtol=1e-12)
    np.testing.assert_array_equal(back.min(1), x.min(1))


def test_agrees_with_pytorchs_fake_quantization_where_the_zero_is_a_whole_step() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    x = np.array([-1.0, -0.3, 0.2, 0.9, 2.75])  # 15 steps of 0.25 from -1
    codes, scale, zero = quantize(x, 4, 0)
    theirs = torch.fake_quantize_per_tensor_affine(torch.tensor(x), float(scale[0]), round(-zero[0] / scale[0]), 0, 15)
    np.testing.assert_allclose(codes * scale + zero, theirs.numpy(), rtol=1e-12)


def test_a_constant_group_is_exact() -> None:
    codes, scale, zero = quantize(np.full(4, 3.0), 4, 0)
    assert codes.sum() == 0
    np.testing.assert_array_equal(codes * scale + zero, 3.0)


def test_more_bits_come_closer_to_attention_on_the_plain_cache() -> None:
    q, k, v = drawn()
    plain = flash_decoding(q, k, v)
    errors = [np.abs(quantized(q, k, v, bits) - plain).max() for bits in (2, 4, 8)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


def test_keys_per_channel_bear_an_outlier_channel_that_keys_per_token_do_not() -> None:
    """What KIVI rests on (section 3.2): an outlier channel widens every per-token group, but only one per-channel group."""
    q, k, v = drawn(outlier=30.0)
    plain = flash_decoding(q, k, v)
    codes, scale, zero = quantize(k[:, :32].reshape(2, 32, 2, 2, 8), 4, 4)
    per_token = np.concatenate([(codes * scale + zero).reshape(2, 32, 2, 16), k[:, 32:]], axis=1)
    error_per_token = np.abs(flash_decoding(q, per_token, v) - plain).max()
    assert np.abs(quantized(q, k, v, 4) - plain).max() < error_per_token / 2


def test_four_bits_read_a_quarter_of_what_plain_float16_would() -> None:
    """Codes alone; scales and zeros of both add the same again at groups of 32 if they are kept in 16 bits."""
    d = QUANTIZED_KV.complete({"B": 1, "J": 256, "C": 32, "R": 1, "K": 8, "G": 4, "P": 4, "W": 16, "U": 2})
    eight = QUANTIZED_KV.complete({**d, "W": 32, "U": 1})
    saved = quantized_kv_cost(eight).elements_read - quantized_kv_cost(d).elements_read
    assert saved == 2 * 8192 * 8 * 64 / 4
    assert quantized_kv_cost(eight).flops == quantized_kv_cost(d).flops


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k, v = drawn()
    keys, values = quantize_keys(k[:, :32], bits=4, tokens=8, groups=2), quantize_values(v[:, :32], bits=4, groups=2)
    with pytest.raises(ValueError, match="H=12 channels in 8 bytes"):
        quantized_kv(q[..., :12], *keys, *values, k[:, 32:], v[:, 32:])
    with pytest.raises(ValueError, match="S=30 tokens"):
        quantized_kv(q, keys[0][:, :30], *keys[1:], *values, k[:, 32:], v[:, 32:])
