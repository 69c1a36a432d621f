"""The process that times libraries without their vendor check: both sides of its lines of JSON."""

import json
import os
import sys
from dataclasses import replace

import pytest

from llmlab.harness.machine import describe
from llmlab.harness.timing import bench, peer_process, results
from llmlab.harness.timing.peer_process import PeerProcess
from llmlab.reference.catalog import load
from llmlab.reference.errors import InputError

SOFTMAX = load("layers.softmax")
AMD = replace(describe(), vendor="AuthenticAMD", features=("avx2",), code_paths={"torch": "MKL", "numpy": "Haswell"})
GREETING = {"code_paths": {"torch": "MKL, vendor check overridden", "numpy": "Haswell"}}
FAKE = """
import json, sys
print(json.dumps({greeting!r}), flush=True)
for line in sys.stdin:
    {action}
"""


@pytest.fixture
def child(monkeypatch):
    """A process of ours with a child that does what it is told with each `line`, and no library."""
    monkeypatch.setattr(peer_process, "why_not", lambda machine: "")
    made = []

    def make(action, greeting=GREETING, machine=AMD):
        script = FAKE.format(greeting=greeting, action=action)
        made.append(PeerProcess(machine, environment=lambda *_: dict(os.environ), command=[sys.executable, "-c", script]))
        return made[-1]

    yield make
    for one in made:
        one.close()


def record(**changes):
    times = dict.fromkeys(("median_s", "best_s", "lower_s", "upper_s"), 1.0)
    one = bench._record(SOFTMAX, "tiny", {"B": 1}, "float32", bench.implementations_of(SOFTMAX, [])[0], True, None, "")
    return replace(one, **(times | changes))


def test_libraries_that_run_other_code_there_differ(child):
    peers = child("pass")
    assert peers.differs("torch")
    assert not peers.differs("numpy")
    assert not peers.differs("")


def test_a_record_comes_back_as_it_was_sent(child):
    peers = child(f"print({json.dumps({'record': record().as_dict()})!r}, flush=True)")
    assert peers.bench({"component": "layers.softmax"}) == record()
    assert peers.bench({"component": "layers.softmax"}) == record()


def test_why_there_is_no_record_is_said(child):
    assert child("print(json.dumps({'error': line.strip()}), flush=True)").bench({"a": 1}) == '{"do": "bench", "a": 1}'


@pytest.mark.parametrize("answer", ['{"record": {"component": 3}}', '{"record": [1]}'])
def test_a_record_that_is_none_is_refused(child, answer):
    with pytest.raises(InputError, match="unlocked process"):
        child(f"print({answer!r}, flush=True)").bench({})


@pytest.mark.parametrize("answer", ["no JSON", "[1]", ""])
def test_an_answer_that_is_none_is_an_error(child, answer):
    assert "the unlocked process ended" in child(f"print({answer!r}, flush=True)").bench({})


def test_a_child_that_dies_says_its_last_words_and_is_started_again(child, tmp_path):
    alive = tmp_path / "alive"
    peers = child(f"import pathlib; pathlib.Path({str(alive)!r}).open('a').write('x'); sys.exit('out of memory')")
    assert peers.bench({}) == "the unlocked process ended: out of memory"
    assert peers.bench({}) == "the unlocked process ended: out of memory"
    assert alive.read_text() == "xx"


def test_a_child_that_does_not_start_is_tried_once(child, tmp_path):
    tried = tmp_path / "tried"
    peers = child("pass")
    peers.command = [sys.executable, "-c", f"open({str(tried)!r}, 'a').write('x'); raise SystemExit('no such library')"]
    assert not peers.differs("torch")
    assert not peers.differs("torch")
    assert peers.why_not.endswith("no such library")
    assert tried.read_text() == "x"
    assert "no such library" in peers.bench({})


def test_where_nothing_is_to_unlock_no_process_is_started():
    intel = replace(AMD, vendor="GenuineIntel")
    with PeerProcess(intel, environment=lambda *_: pytest.fail("started")) as peers:
        assert not peers.differs("torch")
        assert not peers.needed
        assert "vendor check" in peers.bench({})
        peers.rest()


def test_a_child_ends_with_us(child):
    peers = child("pass")
    assert peers.differs("torch")
    process = peers._child
    peers.close()
    assert process.poll() is not None


def case(**changes):
    effort = {"budget_s": 0.01, "shapes": 1, "formula_s": 1e9, "check_s": 1e-4, "memory": 0.9}
    request = {"do": "bench", "component": "layers.softmax", "shape": "tiny", "dtype": "float32", "implementation": "numpy"}
    return json.dumps(request | {"backends": [], "effort": effort} | changes)


def test_the_childs_side_checks_times_and_goes_on_after_an_error(monkeypatch):
    monkeypatch.setitem(SOFTMAX.__dict__, "shapes", {"tiny": {"B": 1, "T": 3, "S": 40}})
    monkeypatch.setattr(bench, "measure", lambda call, **_: (call(), bench.summarize([0.5]))[1])
    lines = [case(component="layers.none"), case(dtype="float16"), case(), json.dumps({"do": "rest"})]
    greeting, unknown, unclaimed, found, rested = peer_process.answers(lines)
    assert greeting["code_paths"] == dict(describe().code_paths)
    assert "layers.none" in unknown["error"]
    assert unclaimed == {"error": "does not claim float16"}
    one = results.parse(json.loads(json.dumps(found["record"])), "here")
    assert (one.implementation, one.correct, one.median_s) == ("numpy", True, 0.5)
    assert rested == {}
    assert bench.checker_of.cache_info().currsize == 0


def test_a_real_child_answers_on_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(peer_process, "why_not", lambda machine: "")
    machine = replace(AMD, code_paths=describe().code_paths)
    with PeerProcess(machine, environment=lambda *_: dict(os.environ)) as peers:
        assert not peers.differs("numpy")
        assert peers.why_not == ""
        assert peers.ask({"do": "nothing"}) == {"error": "KeyError: 'nothing'"}
        assert peers.ask({"do": "rest"}) == {}
