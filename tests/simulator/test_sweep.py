"""Sweeps: the same answer from every engine, whichever process is killed, and nothing computed twice after a restart."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator import sweep as sweeping
from llmlab.simulator.sweep import Store, start_engine, sweep

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (the `cluster` extra)")

WORK = """
import json, os, signal, sys, time
from pathlib import Path
from llmlab.reference.errors import InputError


def square(context, task):
    if task.get("bad"):
        raise InputError("task", "bad", task["bad"], "was asked for")
    folder = Path(context["folder"])
    if task.get("dies") and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("always_dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(context.get("seconds", 0.0))
    with open(folder / "computed", "a") as log:
        log.write(task["name"] + chr(10))
    return {"square": task["number"] ** 2, "exact": task["number"] / 3, "parts": (1, 2)}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored in what it runs aside
    from llmlab.simulator.sweep import sweep

    import sweep_work  # by its importable name, so that workers find it

    options = json.loads(sys.argv[1])
    tasks = {f"k{i}": {"name": f"k{i}", "number": i} for i in range(options.pop("count"))}
    result = sweep(tasks, sweep_work.square, **options)
    print(json.dumps(result))
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The module of workers, importable here and in every process started from here."""
    (tmp_path / "sweep_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    spec = importlib.util.spec_from_file_location("sweep_work", tmp_path / "sweep_work.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sweep_work", module)
    spec.loader.exec_module(module)
    return module


def tasks_of(count, **special):
    found = {f"k{i}": {"name": f"k{i}", "number": i} for i in range(count)}
    for key, changes in special.items():
        found[key] |= changes
    return found


def computed(tmp_path):
    return (tmp_path / "computed").read_text().split()


EXPECTED = {f"k{i}": {"square": i * i, "exact": i / 3, "parts": [1, 2]} for i in range(6)}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks_whoever_computes_them(work, tmp_path, workers):
    seen = []
    found = sweep(
        tasks_of(6),
        work.square,
        context={"folder": str(tmp_path)},
        workers=workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)
    assert seen == [(done, 6) for done in range(7)]


def test_a_stored_point_is_not_computed_again(work, tmp_path):
    context, store = {"folder": str(tmp_path)}, tmp_path / "points.db"
    sweep(dict(list(tasks_of(6).items())[:4]), work.square, context=context, store=store)
    assert sweep(tasks_of(6), work.square, context=context, store=store) == EXPECTED
    assert sorted(computed(tmp_path)) == sorted(EXPECTED)
    with Store(store) as opened:
        assert len(opened) == 6
        opened.put("k1", json.dumps("another"))
        assert opened.known(["k1", "k9"]) == {"k1": EXPECTED["k1"]}


def test_what_was_done_before_an_error_stays_stored(work, tmp_path):
    store = tmp_path / "points.db"
    with pytest.raises(InputError, match="was asked for"):
        sweep(tasks_of(6, k3={"bad": True}), work.square, context={"folder": str(tmp_path)}, store=store)
    with Store(store) as opened:
        assert set(opened.known(list(EXPECTED))) == {"k0", "k1", "k2"}


def test_an_error_of_a_worker_process_is_the_same_error_here(work, tmp_path):
    with pytest.raises(InputError, match="was asked for") as caught:
        sweep(tasks_of(3, k1={"bad": True}), work.square, context={"folder": str(tmp_path)}, workers=2)
    assert (caught.value.where, caught.value.field) == ("task", "bad")


def test_a_task_whose_process_was_killed_is_done_again(work, tmp_path):
    context = {"folder": str(tmp_path)}
    assert sweep(tasks_of(6, k2={"dies": True}), work.square, context=context, workers=2) == EXPECTED
    assert (tmp_path / "died").exists()


def test_a_task_that_always_kills_its_process_ends_the_sweep(work, tmp_path):
    with pytest.raises(RuntimeError, match="died 3 times"):
        sweep(tasks_of(1, k0={"always_dies": True}), work.square, context={"folder": str(tmp_path)}, workers=2)


def test_workers_that_cannot_start_end_the_sweep_whatever_they_were_to_know(work, tmp_path):
    """A program read from standard input cannot be imported by a worker; a large context must not wait for it."""
    program = (
        "import sweep_work; from llmlab.simulator.sweep import sweep; "
        "sweep({'k0': {'name': 'k0', 'number': 0}}, sweep_work.square, context={'folder': 'x' * 1_000_000}, workers=2)"
    )
    ended = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False
    )
    assert ended.returncode == 1
    assert "worker processes died 3 times in a row; 1 points are left" in ended.stderr


def test_no_file_of_a_context_is_left(work, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    context = {"folder": str(tmp_path), "much": "x" * 1_000_000}
    assert sweep(tasks_of(6), work.square, context=context, workers=2) == EXPECTED
    assert not list(tmp_path.glob("llmlab-sweep-*"))


def driver(tmp_path, **options):
    arguments = {"count": 24, "context": {"folder": str(tmp_path), "seconds": 0.1}, "store": str(tmp_path / "points.db")}
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "sweep_work.py"), json.dumps(arguments | options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def stored(tmp_path):
    if not (tmp_path / "points.db").exists():
        return 0
    try:
        connection = sqlite3.connect(f"file:{tmp_path / 'points.db'}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT count(*) FROM points").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


def assert_resumes(work, tmp_path, **engine):
    """What was stored before the driver went is not computed again; the rest is; the answer is that of one process."""
    with Store(tmp_path / "points.db") as opened:
        before = set(opened.known([f"k{i}" for i in range(24)]))
    assert 0 < len(before) < 24
    mark = len(computed(tmp_path))
    tasks = tasks_of(24)
    found = sweep(tasks, work.square, context={"folder": str(tmp_path)}, store=tmp_path / "points.db", **engine)
    assert found == {key: {"square": t["number"] ** 2, "exact": t["number"] / 3, "parts": [1, 2]} for key, t in tasks.items()}
    again = computed(tmp_path)[mark:]
    assert set(again) == set(tasks) - before
    assert len(again) == len(set(again))


def gone(group):
    """Whether no process of this session is left but dead ones that nobody has asked after."""
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return False
        except (psutil.Error, ProcessLookupError):
            continue
    return True


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_driver_leaves_a_store_that_goes_on(work, tmp_path, sent, workers):
    running = driver(tmp_path, workers=workers)
    wait_for(lambda: stored(tmp_path) >= 3)
    running.send_signal(sent)
    running.communicate(timeout=30)
    assert running.returncode != 0
    wait_for(lambda: gone(running.pid))
    assert_resumes(work, tmp_path, workers=workers)


@pytest.mark.slow
@needs_ray
def test_ray_survives_a_killed_worker_and_a_killed_driver(work, tmp_path, monkeypatch):
    """A private cluster of two workers: the answer of one process, a worker killed mid-way, then a driver killed mid-way."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    context = {"folder": str(tmp_path)}
    with start_engine("ray", workers=2, context=context) as cluster:
        assert cluster.workers == 2
        assert sweep(tasks_of(6, k2={"dies": True}), work.square, engine=cluster) == EXPECTED
        assert (tmp_path / "died").exists()
        with pytest.raises(InputError, match="was asked for"):
            sweep(tasks_of(3, k1={"bad": True}), work.square, engine=cluster)
    import ray

    assert not ray.is_initialized()
    (tmp_path / "computed").unlink()
    running = driver(tmp_path, engine="ray", workers=2)
    wait_for(lambda: stored(tmp_path) >= 3)
    running.kill()
    running.communicate(timeout=30)
    wait_for(lambda: gone(running.pid))
    assert_resumes(work, tmp_path, engine="ray", workers=2)


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setattr(sweeping.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="llmlab\\[cluster\\]"):
        sweep({}, print, engine="ray")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"engine": "steam"}, "none of local, ray"), ({"workers": 0}, "must be at least 1")],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(InputError, match=said):
        sweep({}, print, **options)


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look like one\n" * 40)
    before = (tmp_path / "notes.txt").read_bytes()
    with pytest.raises(InputError, match="cannot be used as a store"):
        Store(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == before
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE people (name TEXT)")
    other.commit()
    other.close()
    with pytest.raises(InputError, match="something else"):
        Store(tmp_path / "other.db")
    with pytest.raises(InputError, match="cannot be used as a store"):
        Store(tmp_path / "no" / "such" / "folder.db")
