"""What only the Llama model has."""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmlab.harness.arrays import to_numpy, ulp
from llmlab.harness.tolerance import error_of, exact_and_allowed, in_dtype
from llmlab.reference.errors import InputError
from llmlab.reference.models._blocks import dims_of
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset
from llmlab.reference.models._weights import load_llama2c, load_safetensors, random_weights
from llmlab.reference.models.llama import LLAMA, llama, llama_step, same_logits, tiny_config
from llmlab.reference.op import Cost

KINDS = ("llama-2", "llama-3", "tied", "biases")


def drawn(kind: str, seed: int = 0) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    config = tiny_config(kind)
    weights = random_weights(config, np.random.default_rng(seed), std=0.2)
    return config, {name: array.astype(np.float64) for name, array in weights.items()}


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the order of sums: float64 leaves 2**-40 of the largest value for a handful of layers."""
    assert error_of(actual, expected) <= 2.0**-40 * np.abs(expected).max(initial=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_text_anywhere_gives_the_same_logits(kind: str) -> None:
    config, weights = drawn(kind)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 9))
    whole = llama(config, weights, ids)
    for cuts in ((4,), (1, 2, 8), tuple(range(1, 9))):
        past, parts = None, []
        for piece in np.split(ids, cuts, axis=1):
            logits, past = llama_step(config, weights, piece, past)
            parts.append(logits)
        assert_close(np.concatenate(parts, axis=1), whole)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    config, weights = drawn("llama-3")
    ids = np.arange(8)[None] % config.vocab_size
    other = ids.copy()
    other[0, 5:] += 7
    assert_close(llama(config, weights, other)[:, :5], llama(config, weights, ids)[:, :5])
    assert error_of(llama(config, weights, other)[:, 5:], llama(config, weights, ids)[:, 5:]) > 0.01


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    config, weights = drawn("tied")
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (3, 5))
    alone = np.concatenate([llama(config, weights, row[None]) for row in ids])
    assert_close(llama(config, weights, ids), alone)


def test_an_empty_batch_has_no_logits() -> None:
    config, weights = drawn("llama-2")
    assert llama(config, weights, np.zeros((0, 3), dtype=int)).shape == (0, 3, config.vocab_size)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_twin_errs_no_more_than_the_formula_itself(kind: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from llmlab.kernels.models.llama_torch import llama as twin

    config, weights = drawn(kind, seed=3)
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (2, 7))
    rounded = in_dtype(weights, dtype)
    names = list(weights)

    def formula(*arrays: np.ndarray) -> np.ndarray:
        return llama(config, dict(zip(names, arrays)), ids)

    (exact,), (allowed,) = exact_and_allowed(formula, list(rounded.values()), dtype, {})
    given = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in rounded.items()}
    actual = to_numpy(twin(config, given, torch.from_numpy(ids)))
    assert error_of(actual, exact) <= allowed
    assert error_of(actual * 1.001, exact) > allowed


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rounds_every_layer_and_no_more(kind: str) -> None:
    """Two residual sums a layer, each rounded to 8 bits, and the logits: one unit for each of them at the largest logit."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from llmlab.kernels.models.llama_torch import llama as twin

    config, weights = drawn(kind, seed=3)
    rounded = in_dtype(weights, "bfloat16")
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (2, 7))
    exact = llama(config, rounded, ids)
    given = {name: torch.from_numpy(array).bfloat16() for name, array in rounded.items()}
    actual = to_numpy(twin(config, given, torch.from_numpy(ids)))
    allowed = (2 * config.num_hidden_layers + 1) * ulp(np.abs(exact).max(), "bfloat16")
    assert error_of(actual, exact) <= allowed


def test_the_comparison_refuses_a_thousandth() -> None:
    expected = LLAMA.reference(**LLAMA.examples(np.random.default_rng(0)))
    assert same_logits(expected, expected)
    assert not same_logits(expected, expected * 1.001)
    assert not same_logits(expected, expected[:, :-1])


def test_bad_models_and_ids_are_named() -> None:
    config, weights = drawn("llama-2")
    with pytest.raises(ValueError, match=r"lm_head.weight.*missing"):
        llama(config, {k: v for k, v in weights.items() if k != "lm_head.weight"}, np.zeros((1, 1), int))
    with pytest.raises(ValueError, match=r"\(3,\).*\(24,\)"):
        llama(config, weights | {"model.norm.weight": np.ones(3)}, np.zeros((1, 1), int))
    with pytest.raises(ValueError, match="37"):
        llama(config, weights, np.array([[37]]))
    with pytest.raises(ValueError, match="mistral"):
        llama_step(ModelConfig("m", "mistral", 4, 4, 1, 2, 1, 2, 9), {}, np.zeros((1, 1), int))


# Cost


def cost(**sizes: int) -> Cost:
    config = preset("Llama-3.1-8B")
    assert config is not None
    assert LLAMA.cost is not None
    return LLAMA.cost(dims_of(config, **{"B": 1, "T": 1, "S": 1, **sizes}))


def test_a_decode_step_takes_two_operations_per_matrix_weight_and_its_attention() -> None:
    config = preset("Llama-3.1-8B")
    assert config is not None
    matrices = config.num_parameters - config.vocab_size * config.hidden_size - 65 * config.hidden_size
    assert cost(S=1).flops == 2 * matrices + 4 * 32 * 4096
    assert cost(S=1001).flops - cost(S=1).flops == 1000 * 4 * 32 * 4096


def test_a_decode_step_reads_every_weight_and_the_cache() -> None:
    config = preset("Llama-3.1-8B")
    assert config is not None
    unread = (config.vocab_size - 1) * config.hidden_size  # embedding rows of other tokens
    assert cost(S=1).elements_read == config.num_parameters - unread
    assert cost(S=501).elements_read - cost(S=1).elements_read == 500 * config.kv_bytes_per_token(1)


def test_prefill_costs_the_same_in_one_piece_or_two() -> None:
    assert cost(T=300, S=300).flops == cost(T=100, S=100).flops + cost(T=200, S=300).flops


def test_work_of_a_real_run_is_counted() -> None:
    """The matrix products of the reference, counted while it runs, are the cost's."""
    config, weights = drawn("llama-3")
    B, T = 2, 5
    counted = 2 * B * T * sum(w.size for name, w in weights.items() if w.ndim == 2 and "embed" not in name)
    attention = 4 * B * config.num_hidden_layers * config.query_width * T * (T + 1) // 2
    assert LLAMA.cost is not None
    assert LLAMA.cost(dims_of(config, B=B, T=T, S=T)).flops == counted + attention


# Files


def test_safetensors_files_read_as_the_library_writes_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    rng = np.random.default_rng(0)
    first: dict[str, np.ndarray] = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": np.arange(4),
        "none": np.zeros((0, 2), np.float16),
    }
    second = {"c": rng.standard_normal(7).astype(np.float16)}
    safetensors.save_file(first, tmp_path / "model-1.safetensors")
    safetensors.save_file(second, tmp_path / "model-2.safetensors")
    read = load_safetensors(tmp_path)
    assert read.keys() == {"a", "b", "c", "none"}
    written = {**first, **second}
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from safetensors.torch import save_file

    values = torch.tensor([1.0, -2.5, 3.1415926, float("inf")], dtype=torch.bfloat16)
    save_file({"x": values}, str(tmp_path / "x.safetensors"))
    read = load_safetensors(tmp_path / "x.safetensors")["x"]
    np.testing.assert_array_equal(read, values.float().numpy())


def _header(entry: object, data: bytes = b"1234") -> bytes:
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + data


BROKEN = {
    "empty": b"",
    "short": b"1234",
    "long header": struct.pack("<Q", 10**12) + b"{}",
    "not JSON": struct.pack("<Q", 2) + b"{]",
    "a list": _header([1]),
    "no dtype": _header({"x": {"shape": [1], "data_offsets": [0, 4]}}),
    "unknown dtype": _header({"x": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}),
    "past the end": _header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "wrong length": _header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_weight_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[case])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_safetensors(path)


def write_llama2c(path: Path, *, own_head: bool) -> dict[str, np.ndarray]:
    """A model in llama2.c's first layout; returns its parts as stored."""
    D, F, L, N, K, V, S = 8, 12, 2, 4, 2, 11, 6
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (V, D),
        "norm1": (L, D),
        "q": (L, D, D),
        "k": (L, D // 2, D),
        "v": (L, D // 2, D),
        "o": (L, D, D),
        "norm2": (L, D),
        "gate": (L, F, D),
        "down": (L, D, F),
        "up": (L, F, D),
        "norm": (D,),
        "angles": (S, D // N),
    }
    if own_head:
        shapes["head"] = (V, D)
    parts = {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", D, F, L, N, K, -V if own_head else V, S)
    path.write_bytes(header + b"".join(part.tobytes() for part in parts.values()))
    return parts


@pytest.mark.parametrize("own_head", [False, True])
def test_llama2c_files_are_read_and_their_pairs_split_in_halves(own_head: bool, tmp_path: Path) -> None:
    parts = write_llama2c(tmp_path / "model.bin", own_head=own_head)
    config, weights = load_llama2c(tmp_path / "model.bin")
    assert (config.num_key_value_heads, config.head_dim, config.tie_word_embeddings) == (2, 2, not own_head)
    assert config.weight_shapes() == {name: array.shape for name, array in weights.items()}
    np.testing.assert_array_equal(weights["model.layers.1.mlp.up_proj.weight"], parts["up"][1])
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.q_proj.weight"], parts["q"][0])  # pairs of one: no move
    (tmp_path / "cut.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:-4])
    with pytest.raises(InputError, match=r"cut\.bin.*does not fit its header"):
        load_llama2c(tmp_path / "cut.bin")


# Real weights


@pytest.fixture(scope="session")
def stories(data: Path) -> Path:
    folder = data / "weights" / "tinyllamas"
    if not folder.is_dir():
        pytest.skip("needs weights/tinyllamas under LLMLAB_DATA")
    return folder


def text_of(ids: list[int], folder: Path) -> bytes:
    """Decode with the vocabulary beside the weights: after the start token a piece loses its leading space."""
    raw = next(folder.glob("*tok512.bin")).read_bytes()
    pieces, place = [], 4
    for _ in range(512):
        _, length = struct.unpack("<fi", raw[place : place + 8])
        pieces.append(raw[place + 8 : place + 8 + length])
        place += 8 + length
    text = b""
    for before, token in pairwise(ids):
        piece = pieces[token].removeprefix(b" ") if before == 1 else pieces[token]
        text += bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") else piece
    return text


@pytest.mark.data
def test_trained_weights_tell_the_published_story(stories: Path) -> None:
    config, weights = load_llama2c(stories / "stories260K.bin")
    ids, past = [1], None
    for _ in range(200):
        logits, past = llama_step(config, weights, np.array([ids[-1:]]), past)
        ids.append(int(logits[0, -1].argmax()))
    assert text_of(ids, stories) == (stories / "expected_greedy_200.txt").read_bytes()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A model this small computes less than threads cost to meet."""
    torch = pytest.importorskip("torch", reason="needs torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.data
@pytest.mark.usefixtures("one_thread")
def test_trained_weights_tell_the_published_story_over_torch(stories: Path) -> None:
    import torch

    from llmlab.kernels.models.llama_torch import LlamaTorch

    config, weights = load_llama2c(stories / "stories260K.bin")
    model = LlamaTorch(config, weights)
    cache = model.new_cache(num_blocks=20, block_tokens=16)
    table = torch.arange(20).flip(0)[None, :14]
    ids = [1]
    for length in range(1, 201):
        logits = model.forward(torch.tensor(ids[-1:]), torch.tensor([length - 1]), cache, [0, 1], table, [length])
        ids.append(int(logits[0].argmax()))
    assert text_of(ids, stories) == (stories / "expected_greedy_200.txt").read_bytes()
    names = list(weights)
    arrays = [weights[name].astype(np.float64) for name in names]
    (exact,), (allowed,) = exact_and_allowed(
        lambda *given: llama(config, dict(zip(names, given)), np.array([ids])), arrays, "float32", {}
    )
    assert error_of(to_numpy(model.logits(torch.tensor([ids]))), exact) <= allowed
