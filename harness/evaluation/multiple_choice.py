"""Multiple-choice questions answered by likelihood: how a model of any size is put into a table of models by scenarios.

A question is a text and the ways it might go on; a model chooses the one with the least nats per byte (Brown et al. 2020,
arXiv:2005.14165, section 2.4, normalized by length), and its confidence is the softmax over the total log-likelihoods. Every
question is also asked in perturbed forms (HELM, arXiv:2211.09110, sections 4.4-4.5): the text changes, the choices stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.evaluation.classification import classification
from llmlab.reference.evaluation.helm import FAIRNESS, ROBUSTNESS, bootstrap_interval, mean_win_rate, worst_case
from llmlab.reference.evaluation.perplexity import bits_per_byte, perplexity, strided_windows
from llmlab.reference.layers.cross_entropy import cross_entropy

SHIPPED = Path(__file__).resolve().parent / "scenarios.yaml"
MOST_QUESTIONS = 100_000
UNCHANGED = "as it is"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A text and the ways it might go on; the first is right."""

    text: str
    choices: tuple[str, ...]


Scenarios = Mapping[str, Sequence[Question]]


class Scorer(Protocol):
    """What can be asked."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def nats(self, text: str, continuation: str) -> float:
        """Minus the log-likelihood of the continuation after the text."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal model and its tokenizer.

    Attributes:
        logits: ids_BT -> logits_BTV.
        encode: text -> ids, whatever begins every text included.
        context: tokens it can see.
    """

    name: str
    logits: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[str], Sequence[int]]
    context: int

    def nats(self, text: str, continuation: str) -> float:
        """Tokens that text and text with continuation do not share are the continuation's: a cut may fall within a token."""
        before, whole = list(self.encode(text)), list(self.encode(text + continuation))
        shared = next((n for n, (one, other) in enumerate(zip(before, whole)) if one != other), min(len(before), len(whole)))
        shared = max(shared, 1)  # nothing predicts the first token
        ids = np.array([whole[-self.context :]])
        first = shared - (len(whole) - ids.shape[1])
        loss_1T = cross_entropy(self.logits(ids)[:, :-1], ids[:, 1:])
        return float(loss_1T[0, max(first - 1, 0) :].sum())

    def bits_per_byte(self, text: str, *, stride: int | None = None) -> float:
        """Bits the text costs per byte of its UTF-8, in windows of the whole context that overlap by half unless said."""
        ids_N = np.array(self.encode(text))
        windows = strided_windows(ids_N, context=self.context, stride=stride or max(1, self.context // 2))
        logits = np.concatenate([self.logits(row[None]) for row in windows[0]])
        _, bits = perplexity(logits, *windows)
        return bits_per_byte(float(bits), int(windows[1].sum()), len(text.encode()))


@dataclass(frozen=True)
class Letters:
    """A baseline that knows how often each byte occurs and nothing else; bytes it never saw count as seen half a time."""

    name: str
    count: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, text: str, name: str = "letter frequencies") -> Letters:
        """Count the bytes of a text."""
        return cls(name, Counter(text.encode()))

    def nats(self, text: str, continuation: str) -> float:
        """The text has no say."""
        total = self.count.total() + 128
        return float(-sum(np.log((self.count[byte] + 0.5) / total) for byte in continuation.encode()))


def read_scenarios(path: str | Path = SHIPPED) -> dict[str, list[Question]]:
    """Read a YAML mapping of scenarios: each a list of [text, [right continuation, wrong ones ...]].

    Raises:
        InputError: the file cannot be read, or an entry is no question.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, "", path.name, f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise InputError(path, "", type(content).__name__, "expected a mapping of scenarios")
    found: dict[str, list[Question]] = {}
    for name, entries in content.items():
        if not isinstance(entries, list) or not entries or len(entries) > MOST_QUESTIONS:
            raise InputError(path, str(name), entries if not isinstance(entries, list) else len(entries), "expected questions")
        for number, entry in enumerate(entries):
            where = f"{name}[{number}]"
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list)):
                raise InputError(path, where, entry, "expected [text, [right continuation, wrong ones ...]]")
            text, choices = entry
            if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
                raise InputError(path, where, choices, "expected at least two continuations, none of them empty")
            found.setdefault(str(name), []).append(Question(text, tuple(choices)))
    return found


def ask(scorer: Scorer, question: Question, text: str | None = None) -> np.ndarray:
    """Return nats_C of every choice, the text as it is or as given."""
    return np.array([scorer.nats(question.text if text is None else text, choice) for choice in question.choices])


def _right(nats_C: np.ndarray, question: Question) -> bool:
    lengths_C = np.array([len(choice.encode()) for choice in question.choices])
    return bool(np.argmin(nats_C / lengths_C) == 0)


def evaluate(
    scorers: Sequence[Scorer],
    scenarios: Scenarios,
    *,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Ask every model every question in every form; return {"rows": ..., "models": ...}.

    A row is a model in a scenario: accuracy with its 95 % interval, the worst case over typos, case, spacing and contractions
    (`robust`) and over dialect and gender (`fair`), calibration error and Brier score of the stated probabilities, what chance
    gives. A line of models has the mean win rates of each (None where there is one model alone).

    Raises:
        ValueError: no models or no scenarios.
    """
    if not scorers or not scenarios:
        raise ValueError(f"{len(scorers)} models, {len(scenarios)} scenarios: needs one of each")
    forms = {UNCHANGED: lambda text, rng: text, **ROBUSTNESS, **FAIRNESS}
    rows: list[dict[str, Any]] = []
    done, total = 0, len(scorers) * sum(map(len, scenarios.values()))
    rng = np.random.default_rng(seed)
    for scorer in scorers:
        for scenario, questions in scenarios.items():
            right_PI = np.zeros((len(forms), len(questions)))
            nats = []
            for i, question in enumerate(questions):
                progress(f"{scorer.name}: {scenario}", done, total)
                done += 1
                nats.append(ask(scorer, question))
                right_PI[:, i] = _right(nats[i], question)
                for p, perturb in enumerate(forms.values()):
                    text = perturb(question.text, np.random.default_rng([seed, p, i]))  # the same forms for every model
                    if text != question.text:
                        right_PI[p, i] = _right(ask(scorer, question, text), question)
            low, high = bootstrap_interval(right_PI[0], rng, resamples=resamples)
            rows.append(
                {
                    "model": scorer.name,
                    "scenario": scenario,
                    "questions": len(questions),
                    "chance": float(np.mean([1 / len(question.choices) for question in questions])),
                    "accuracy": float(right_PI[0].mean()),
                    "low": low,
                    "high": high,
                    "robust": worst_case(right_PI[[name in (UNCHANGED, *ROBUSTNESS) for name in forms]]),
                    "fair": worst_case(right_PI[[name in (UNCHANGED, *FAIRNESS) for name in forms]]),
                    **_certainty(nats),
                }
            )
    rates = {
        key: mean_win_rate(np.array([row[key] for row in rows]).reshape(len(scorers), len(scenarios)))
        for key in ("accuracy", "robust", "fair")
    }
    models = [
        {
            "model": scorer.name,
            **{f"{key}_win_rate": None if np.isnan(rate_M[m]) else float(rate_M[m]) for key, rate_M in rates.items()},
        }
        for m, scorer in enumerate(scorers)
    ]
    return {"rows": rows, "models": models, "seed": seed}


def _certainty(nats: Sequence[np.ndarray]) -> dict[str, float]:
    """Calibration and Brier score over questions, padded to the most choices any has."""
    most = max(map(len, nats))
    probability_NC = np.zeros((len(nats), most))
    for n, nats_C in enumerate(nats):
        weight_C = np.exp(nats_C.min() - nats_C)
        probability_NC[n, : len(nats_C)] = weight_C / weight_C.sum()
    found = classification(probability_NC, np.zeros(len(nats), dtype=np.int64), bins=10)
    return {"calibration_error": found["calibration_error"], "brier": found["brier"]}
