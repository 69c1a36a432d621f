"""sentencepiece over a model written for it with its official proto package, and Hugging Face's Unigram model."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.unigram import UNIGRAM, Vocabulary


@oracle(UNIGRAM, library="sentencepiece.SentencePieceProcessor", needs=("sentencepiece", "google.protobuf"))
def sentencepiece(vocabulary: Vocabulary, text: str) -> list[int]:
    """It joins unknown characters that follow each other into one id; its text says how many they were."""
    theirs = processor(vocabulary)
    ids, texts = theirs.encode(text, out_type=int), theirs.encode(text, out_type=str)
    return [number for number, piece in zip(ids, texts) for _ in range(len(piece) if number == vocabulary.unknown else 1)]


def processor(vocabulary: Vocabulary) -> Any:
    """The library's processor for the same pieces, without any normalization."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for number, (piece, score) in enumerate(zip(vocabulary.pieces, vocabulary.scores)):
        kind = 2 if number == vocabulary.unknown else 1
        model.pieces.add(piece=piece or "<unk>", score=float(score), type=kind)
    model.trainer_spec.model_type = 1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@oracle(UNIGRAM, library="tokenizers.models.Unigram", needs=("tokenizers",))
def tokenizers(vocabulary: Vocabulary, text: str) -> list[int]:
    from tokenizers import Tokenizer, models

    pieces = [(piece or "<unk>", float(score)) for piece, score in zip(vocabulary.pieces, vocabulary.scores)]
    found = Tokenizer(models.Unigram(pieces, unk_id=vocabulary.unknown)).encode(text)
    return [
        number
        for number, (start, end) in zip(found.ids, found.offsets)
        for _ in range(end - start if number == vocabulary.unknown else 1)
    ]
