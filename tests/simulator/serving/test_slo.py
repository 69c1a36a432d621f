"""Reading objectives, and giving up exactly when they are out of reach."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.errors import InputError
from llmlab.simulator.serving.metrics import statistics
from llmlab.simulator.serving.slo import Slo, Target, Watch, parse_slo


def test_clauses_are_read_with_their_units():
    slo = parse_slo("ttft_p99=2s, tpot_p99.9=50ms,e2e_mean=1e1s,itl_max=900us")
    assert [(t.metric, t.statistic, t.quantile) for t in slo.targets] == [
        ("ttft", "p99", 0.99),
        ("tpot", "p99.9", pytest.approx(0.999)),
        ("e2e", "mean", None),
        ("itl", "max", 1.0),
    ]
    assert [t.seconds for t in slo.targets] == pytest.approx([2, 0.05, 10, 0.0009])
    assert slo.limit("ttft") == 2
    assert slo.limit("tpot") == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "METRIC_STATISTIC=AMOUNT"),
        ("ttft", "METRIC_STATISTIC=AMOUNT"),
        ("ttft_p99=2s,,", "METRIC_STATISTIC=AMOUNT"),
        ("ttft_p99=2", "needs a unit"),
        ("ttft_p99=2h", "needs a unit"),
        ("ttft_p99=-2s", "must be positive"),
        ("ttft_p99=0s", "must be positive"),
        ("ttft_p99=1e999s", "must be positive"),
        ("ttft_p99=nans", "number with a unit"),
        ("ttft_p99=1.2.3s", "number with a unit"),
        ("fttt_p99=2s", "metric='fttt'"),
        ("ttft_p0=2s", "statistic='p0'"),
        ("ttft_p100=2s", "statistic='p100'"),
        ("ttft_median=2s", "statistic='median'"),
        ("ttft_p99=2s,ttft_p99=3s", "given twice"),
    ],
)
def test_nonsense_is_named(text, said):
    with pytest.raises(InputError, match=said):
        parse_slo(text)


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=60),
    st.sampled_from(["p50", "p90", "p99", "mean", "max"]),
    st.integers(1, 100),
)
def test_the_watch_speaks_only_when_the_clause_is_broken(values, statistic, limit):
    slo = Slo((Target("ttft", statistic, limit / 1e9),))
    watch = Watch(slo, [5] * len(values))
    spoke = any(watch.first_token(value) for value in values)
    measured = statistics(np.array(values, dtype=float), (statistic,))[statistic]
    if spoke:
        assert measured > limit
    elif statistic in ("max", "mean"):
        assert measured <= limit + 1e-9


def test_the_watch_counts_the_time_per_token_of_longer_answers_only():
    watch = Watch(parse_slo("tpot_max=10us"), [1, 3])
    assert not watch.finished(decode_ns=10**9, e2e_ns=10**9, output_tokens=1)
    assert not watch.finished(decode_ns=20_000, e2e_ns=10**9, output_tokens=3)
    assert watch.finished(decode_ns=20_002, e2e_ns=10**9, output_tokens=3)
    assert watch.failed()
