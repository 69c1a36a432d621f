"""Scores of classifiers by scikit-learn and torchmetrics."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.evaluation.classification import CLASSIFICATION


@oracle(CLASSIFICATION, library="sklearn.metrics, torchmetrics calibration error", needs=("sklearn", "torch", "torchmetrics"))
def classification(probability_NC: np.ndarray, true_N: np.ndarray, *, bins: int = 15) -> dict[str, float]:
    import torch
    from sklearn.metrics import accuracy_score, brier_score_loss, f1_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    predicted_N, classes = probability_NC.argmax(1), probability_NC.shape[1]
    calibration = multiclass_calibration_error(
        torch.from_numpy(probability_NC), torch.from_numpy(true_N), num_classes=classes, n_bins=bins, norm="l1"
    )
    return {
        "accuracy": float(accuracy_score(true_N, predicted_N)),
        "macro_f1": float(f1_score(true_N, predicted_N, average="macro")),
        "calibration_error": float(calibration),
        "brier": float(brier_score_loss(true_N, probability_NC, labels=list(range(classes)), scale_by_half=False)),
    }
