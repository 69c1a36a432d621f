"""What holds of every family that can be run, in every variant: names, counts, caches, prices."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import architecture_of, architectures, unpack
from llmlab.reference.models._blocks import decoder, decoder_cost, dims_of, drawn, forward, matmul_flops
from llmlab.reference.models._config import ModelConfig
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.model.description import ModelDescription

VARIANTS = {name: architecture for architecture in architectures().values() for name in architecture.tiny}
NOT_IN_TRANSFORMERS = ("baichuan",)
KNOWN = [name for name, architecture in VARIANTS.items() if not set(architecture.model_types) & set(NOT_IN_TRANSFORMERS)]


def ids_of(config: ModelConfig, B: int, T: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab_size, (B, T))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the order of sums: float64 leaves 2**-40 of the largest value for a handful of layers."""
    assert error_of(actual, expected) <= 2.0**-40 * np.abs(expected).max(initial=1.0)


@pytest.mark.parametrize("name", KNOWN)
def test_weights_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = VARIANTS[name].tiny_config(name)
    theirs = transformers.AutoConfig.for_model(**VARIANTS[name].tiny[name])
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert config.weight_shapes() == shapes
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert ModelDescription(config).parameters == config.num_parameters


@pytest.mark.parametrize("name", KNOWN)
def test_the_file_transformers_writes_means_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    written = transformers.AutoConfig.for_model(**VARIANTS[name].tiny[name]).to_dict()
    written |= {"bos_token_id": None, "eos_token_id": None}  # some families insist on their own
    given, read = VARIANTS[name].tiny_config(name), ModelConfig.from_dict(written, name)
    said = VARIANTS[name].tiny[name]
    if not {"max_position_embeddings", "n_positions"} & set(said):  # each file's family assumes its own
        read = replace(read, max_position_embeddings=given.max_position_embeddings)
    assert replace(read, dtype=given.dtype) == given


@pytest.mark.parametrize("name", VARIANTS)
def test_cutting_a_text_anywhere_gives_the_same_logits(name: str) -> None:
    config, weights = drawn(VARIANTS[name], name)
    ids = ids_of(config, 2, 9)
    whole = forward(config, weights, ids)
    for cuts in ((4,), (1, 2, 8)):
        past, parts = None, []
        for piece in np.split(ids, cuts, axis=1):
            logits, past = decoder(config, weights, piece, past)
            parts.append(logits)
        assert_close(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_later_tokens_do_not_change_earlier_logits(name: str) -> None:
    config, weights = drawn(VARIANTS[name], name)
    ids = ids_of(config, 1, 8)
    other = np.concatenate([ids[:, :5], (ids[:, 5:] + 7) % config.vocab_size], axis=1)
    whole, changed = forward(config, weights, ids), forward(config, weights, other)
    assert_close(changed[:, :5], whole[:, :5])
    assert error_of(changed[:, 5:], whole[:, 5:]) > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_per_token_are_those_of_the_cache(name: str) -> None:
    config, weights = drawn(VARIANTS[name], name)
    _, present = decoder(config, weights, ids_of(config, 1, 5))
    held = sum(array.nbytes for seen in present for array in seen)
    assert held == 5 * config.kv_bytes_per_token(8)
    assert ModelDescription(config).kv_bytes_per_token() == config.kv_bytes_per_token(2)


class Counted(np.ndarray):
    """An array whose matrix products are counted, 2 FLOPs per multiply-add."""

    flops = 0.0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(one) for one in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(one) for one in options["out"])
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.flops += 2.0 * result.size * plain[0].shape[-1]
        return counted(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain = _plain(args)
        result = function(*plain, **{key: _plain(value) for key, value in kwargs.items()})
        if function is np.einsum:
            terms = plain[0].partition("->")[0].split(",")
            sizes = {axis: n for term, array in zip(terms, plain[1:]) for axis, n in zip(term, array.shape)}
            Counted.flops += 2.0 * math.prod(sizes.values())
        return counted(result)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_plain(one) for one in value)
    return np.asarray(value) if isinstance(value, Counted) else value


def counted(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return type(result)(counted(one) for one in result)
    return result.view(Counted) if isinstance(result, np.ndarray) else result


def flops_of(config: ModelConfig, weights: dict[str, np.ndarray], ids: np.ndarray, past: Any = None) -> tuple[float, Any]:
    Counted.flops = 0.0
    _, present = decoder(config, {name: array.view(Counted) for name, array in weights.items()}, ids, past)
    return Counted.flops, present


@pytest.mark.parametrize("name", VARIANTS)
def test_priced_flops_are_the_matrix_products_that_run(name: str) -> None:
    """The reference forms all T * S scores of a prefill; the price counts the pairs seen. Windows are longer than the text."""
    config, weights = drawn(VARIANTS[name], name)
    T = 3
    ran, past = flops_of(config, weights, ids_of(config, 1, T))
    per_pair = matmul_flops(config, B=1, T=1, S=2) - matmul_flops(config, B=1, T=1, S=1)
    assert ran == matmul_flops(config, B=1, T=T, S=T) + per_pair * (T * T - T * (T + 1) // 2)
    prefill = BatchShape(prefill=((T, 0),), decode_requests=0, decode_context_tokens=0, emitted=T)
    assert ModelDescription(config).flops(prefill) == matmul_flops(config, B=1, T=T, S=T)
    if not config.latent:  # the reference expands every latent again in each step; prices count it once
        ran, _ = flops_of(config, weights, ids_of(config, 1, 1), past)
        step = BatchShape(prefill=(), decode_requests=1, decode_context_tokens=T + 1, emitted=1)
        assert ran == matmul_flops(config, B=1, T=1, S=T + 1) == ModelDescription(config).flops(step)


def test_the_count_refuses_a_model_without_one_of_its_products() -> None:
    config, weights = drawn(VARIANTS["llama-2"], "llama-2")
    ran, _ = flops_of(config, weights, ids_of(config, 1, 1))
    assert ran > matmul_flops(ModelConfig(**{**vars(config), "intermediate_size": 28}), B=1, T=1, S=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_of_a_model_are_those_of_its_declared_cost(name: str) -> None:
    config = VARIANTS[name].tiny_config(name)
    for T, S in ((1, 1), (1, 9), (4, 9)):
        assert matmul_flops(config, B=3, T=T, S=S) == decoder_cost(dims_of(config, B=3, T=T, S=S)).flops


@pytest.mark.parametrize("name", VARIANTS)
def test_declared_reads_are_every_matrix_and_what_is_kept_of_earlier_tokens(name: str) -> None:
    config, B, T = VARIANTS[name].tiny_config(name), 3, 20  # enough tokens to visit every expert
    tables = ("model.embed_tokens.weight", "model.embed_positions.weight")
    shapes = {key: shape for key, shape in config.parameter_shapes().items() if len(shape) > 1 and key not in tables}
    width = config.embedding_width or config.hidden_size
    read = sum(map(math.prod, shapes.values())) + config.tie_word_embeddings * config.vocab_size * width
    read += (2 * config.num_hidden_layers + 1) * config.hidden_size + B * T * width
    costs = [decoder_cost(dims_of(config, B=B, T=T, S=S)) for S in (T, T + 5)]
    assert costs[0].elements_read == read
    assert costs[1].elements_read - read == B * 5 * config.kv_bytes_per_token(1)


@pytest.mark.parametrize("name", ["gpt2", "phi-3", "glm-4", "baichuan-7b"])
def test_stacked_weights_are_views(name: str) -> None:
    config, weights = drawn(VARIANTS[name], name)
    _, layers = unpack(config, weights)
    for array in layers[0].values():
        assert any(np.shares_memory(array, stored) for stored in weights.values())


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match="parrot"):
        architecture_of("parrot")


def test_every_model_type_has_a_tiny_example() -> None:
    built = {facts["model_type"] for architecture in VARIANTS.values() for facts in architecture.tiny.values()}
    assert built == set(architectures())
