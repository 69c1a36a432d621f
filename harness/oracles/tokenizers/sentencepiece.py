"""The sentencepiece library over a model written with its official proto package."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.sentencepiece import SENTENCEPIECE, Model


@oracle(SENTENCEPIECE, library="sentencepiece.SentencePieceProcessor", needs=("sentencepiece", "google.protobuf"))
def sentencepiece(model: Model, text: str) -> list[int]:
    return processor(model).encode(text)


def processor(model: Model) -> Any:
    """The library's processor for the same model."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=written(model))


def written(model: Model) -> bytes:
    """The bytes of the `.model` file, written by the official package; no rules of normalization."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(model.pieces, model.scores, model.types):
        proto.pieces.add(piece=piece, score=float(score), type=kind)
    proto.trainer_spec.model_type = {"unigram": 1, "bpe": 2}[model.kind]
    proto.trainer_spec.byte_fallback = model.byte_fallback
    proto.trainer_spec.treat_whitespace_as_suffix = model.space_after
    proto.trainer_spec.unk_surface = model.unknown_surface
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = model.dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = model.squeeze_spaces
    proto.normalizer_spec.escape_whitespaces = model.escape_spaces
    return proto.SerializeToString()
