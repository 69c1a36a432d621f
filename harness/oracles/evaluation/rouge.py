"""ROUGE by Google's rouge_score; its order of arguments is (target, prediction)."""

from collections.abc import Sequence

from llmlab.harness.oracle import oracle
from llmlab.reference.evaluation.rouge import ROUGE, Score


@oracle(ROUGE, library="rouge_score.rouge_scorer.RougeScorer", needs=("rouge_score",))
def rouge(prediction: str, targets: Sequence[str]) -> dict[str, Score]:
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"]).score_multi(list(targets), prediction)
    return {name: Score(score.precision, score.recall, score.fmeasure) for name, score in found.items()}
