"""Fleets as files: what is shipped runs, and what is wrong is named with file, key and value."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.reference.errors import InputError
from llmlab.reports.cluster_state import save_state
from llmlab.simulator.serving import fleet_file
from llmlab.simulator.serving.fleet_file import read_fleet
from llmlab.simulator.serving.over_time import mean_per_bin, over_time
from llmlab.simulator.serving.simulate import simulate
from llmlab.simulator.serving.simulate_fleet import simulate_fleet
from llmlab.simulator.workload.spec import load_workload

EXAMPLES = Path(fleet_file.__file__).parent / "examples"
FIRST = {"mooncake": 300, "autoscaled_chat": 2000, "failing": 900, "agents": 300}
NAMES = tuple(FIRST)


@pytest.fixture(scope="module")
def runs():
    """Every shipped example, its first requests."""
    found = {}
    for name in NAMES:
        workload = load_workload(EXAMPLES / f"{name}_load.yaml").first(FIRST[name])
        found[name] = simulate_fleet(read_fleet(EXAMPLES / f"{name}.yaml"), workload, record="states")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_example_finishes_everything(runs, name):
    found = runs[name].metrics()
    assert found["finished"] == FIRST[name]
    assert found["failed"] == 0
    assert found["gpu_hours"] > 0
    json.dumps(found, allow_nan=False)


def test_every_file_in_the_folder_is_exercised():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {*NAMES, *(f"{name}_load" for name in NAMES)}


def test_examples_show_what_they_are_for(runs):
    mooncake = runs["mooncake"].metrics()
    assert mooncake["transfers"]["count"] == 300
    assert mooncake["prefix_reads"]["count"] > 10
    assert runs["autoscaled_chat"].metrics()["pools"][0]["starts"] >= 1
    failing = runs["failing"].metrics()
    assert failing["retries"] > 0
    assert failing["availability"] < 1
    agents = runs["agents"].metrics()
    assert agents["sessions"]["later_turns_cached_fraction"] > 0.5
    assert {row["device"] for row in agents["pools"]} == {"H200-SXM-141GB", "L40S"}


@pytest.mark.parametrize("name", NAMES)
def test_the_timeline_holds_steps_transfers_and_outages(runs, name):
    result = runs[name]
    events = list(result.trace_events())
    steps = [event for event in events if event["ph"] == "X" and event.get("cat") != "state"]
    assert len(steps) == result.log.num_steps
    assert sum(event.get("cat") == "transfer" and event["ph"] == "b" for event in events) == sum(
        2 if move.source >= 0 else 1 for move in result.fleet_log.moves
    )
    down = [event for event in events if event.get("cat") == "state" and event["name"] == "down"]
    assert len(down) == sum(state == "down" and when < result.fleet_log.end_ns for when, _, state in result.fleet_log.turned)
    json.dumps(events, allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_states_over_time_integrate_to_the_totals(runs, name):
    result = runs[name]
    series = over_time(result, bins=37)
    width = np.diff(series.edges_s)
    pools = result.metrics()["pools"]
    for number, row in enumerate(pools):
        seconds = row["seconds_by_state"]
        assert (series.serving[number] * width).sum() == pytest.approx(seconds["up"] + seconds["draining"])
        assert (series.down[number] * width).sum() == pytest.approx(seconds["down"], abs=1e-9)
        if not result.fleet_log.outages:  # a lost step counts as busy only until the outage
            assert (series.watts[number] * width).sum() == pytest.approx(row["energy_j"], rel=1e-6)
    waited = np.nansum(result.requests["queue_s"]) if name != "failing" else (series.queued * width).sum()
    assert (series.queued * width).sum() == pytest.approx(waited)
    assert (series.kv_fraction >= 0).all()
    assert (series.kv_fraction <= 1 + 1e-9).all()


def test_the_mean_over_bins_is_exact():
    edges = np.linspace(0, 10, 11)
    got = mean_per_bin(np.array([0.5, 2.0]), np.array([3.5, 2.0]), np.array([2.0, 9.0]), edges)
    assert got.tolist() == [1, 2, 2, 1, 0, 0, 0, 0, 0, 0]
    assert mean_per_bin(np.zeros(0), np.zeros(0), np.zeros(0), edges).tolist() == [0.0] * 10


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_picture_is_the_same_file_twice(runs, tmp_path, ending):
    one, two = (save_state(runs["mooncake"], tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
    assert one == two
    with pytest.raises(InputError, match="must end in"):
        save_state(runs["mooncake"], tmp_path / "c.gif")


def test_a_picture_needs_a_fleet_with_states(runs, tmp_path):
    workload = runs["failing"].workload.first(2)
    fleet = runs["failing"].fleet
    with pytest.raises(ValueError, match="no states were recorded"):
        save_state(simulate_fleet(fleet, workload), tmp_path / "a.png")
    with pytest.raises(TypeError, match="SimulationResult"):
        save_state(simulate(fleet.pools[0].deployment, workload), tmp_path / "a.png")


def written(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return path


def test_a_file_says_what_the_objects_say(tmp_path):
    path = written(
        tmp_path,
        """
model: meta-llama/Llama-3.1-8B
weight_dtype: fp8
router: kv_aware
staleness_s: 1
pools:
  - {device: h100, replicas: 3, scaling: {policy: predictive, rate_per_replica: 2, load_bytes_per_s: 4e9}}
  - {device: l40s, name: spare}
failures: {gpu: {mtbf_s: 1e6, mttr_s: 60}}
retries: {limit: 1}
""",
    )
    fleet = read_fleet(path)
    assert [pool.deployment.weight_dtype for pool in fleet.pools] == ["fp8", "fp8"]
    assert fleet.pools[0].scaling.load_bytes_per_s == 4e9
    assert fleet.failures.gpu.mtbf_s == 1e6
    assert fleet.failures.node is None
    assert fleet.name_of == ["pool 0", "spare"]
    assert (fleet.router, fleet.staleness_s, fleet.retries.limit, fleet.retries.factor) == ("kv_aware", 1, 1, 2.0)
    assert replace(fleet, retries=fleet.retries) == fleet


GOOD = "model: meta-llama/Llama-3.1-8B\npools:\n  - {device: h100}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold keys"),
        ("- 1", "must hold keys"),
        ("a: [", "is not YAML"),
        ("model: x", "pools=None"),
        ("pools: []\nmodel: x", "at least one pool"),
        ("pools: [3]\nmodel: x", "pools.0=3"),
        ("pools: [{device: h100}]", "pools.0.model"),
        (GOOD + "speed: 3", "speed=3: unknown key"),
        (GOOD + "router: psychic", "router='psychic'"),
        (GOOD + "router: 3", "router=3"),
        (GOOD + "staleness_s: soon", "staleness_s='soon'"),
        (GOOD + "staleness_s: -1", "staleness_s=-1"),
        (GOOD + "retries: 3", "retries=3"),
        (GOOD + "retries: {limit: -1}", "retries.limit=-1"),
        (GOOD + "retries: {limit: 1.5}", "retries.limit=1.5"),
        (GOOD + "retries: {often: true}", "retries.often=True: unknown key"),
        (GOOD + "failures: {gpu: {mtbf_s: 0, mttr_s: 1}}", "failures.gpu.mtbf_s=0"),
        (GOOD + "failures: {gpu: {mtbf_s: 1}}", "failures.gpu.mttr_s"),
        (GOOD + "failures: {roof: {mtbf_s: 1, mttr_s: 1}}", "failures.roof"),
        (GOOD + "transfer: {link: string}", "transfer.link='string'"),
        (GOOD + "prefix_pool: {capacity_bytes: .nan}", "prefix_pool.capacity_bytes=nan"),
        (GOOD.replace("h100}", "h100, role: cook}"), "pools.0.role='cook'"),
        (GOOD.replace("h100}", "h100, role: prefill}"), "both everywhere, or prefill and decode"),
        (GOOD.replace("h100}", "h100, replicas: two}"), "pools.0.replicas='two'"),
        (GOOD.replace("h100}", "h100, replicas: 0}"), "pools.0.replicas=0"),
        (GOOD.replace("h100}", "h100, router: random}"), "pools.0.router='random'"),
        (GOOD.replace("h100}", "h100, colour: red}"), "pools.0.colour='red'"),
        (GOOD.replace("h100}", "h100, scaling: {least: 7}}"), "pools.0.replicas=1"),
        (GOOD.replace("h100}", "h100, scaling: {target: 0}}"), "pools.0.scaling.target=0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_fleet(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "pools", "device", "role", "scaling", "failures", "gpu", "retries", "transfer", "prefix_pool", "limit", "x"]), inner, max_size=4), max_leaves=14))  # fmt: skip # noqa: E501
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_content_is_a_fleet_or_an_input_error(tmp_path, content):
    import yaml

    path = written(tmp_path, yaml.safe_dump(content))
    with contextlib.suppress(InputError):
        read_fleet(path)


def test_the_command_takes_a_file_and_refuses_what_contradicts_it(tmp_path):
    run = CliRunner().invoke
    arguments = ["simulate", "serve", "--workload", str(EXAMPLES / "failing_load.yaml"), "--first", "40"]
    deployed = ["--deployment", str(EXAMPLES / "failing.yaml")]
    picture, trace = tmp_path / "p.png", tmp_path / "t.json"
    found = run(app, [*arguments, *deployed, "--plot", str(picture), "--trace", str(trace), "--json"])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["finished"] == 40
    assert said["fleet"]["failures"]["gpu"] == {"mtbf_s": 400, "mttr_s": 20}
    assert said["pools"][0]["devices"] == 2
    assert picture.stat().st_size > 10_000
    assert json.loads(trace.read_text())["traceEvents"]
    table = run(app, [*arguments, *deployed])
    assert table.exit_code == 0
    assert "availability" in table.stdout or "Pools" in table.stdout
    for extra, said in (
        ([*deployed, "--model", "x"], "--model"),
        ([*deployed, "--replicas", "3"], "--replicas"),
        ([], "--deployment"),
        ([*deployed, "--plot", str(tmp_path / "p.gif")], "must end in"),
    ):
        refused = run(app, [*arguments, *extra])
        assert refused.exit_code != 0
        assert said in str(refused.exception)
    assert not (tmp_path / "p.gif").exists()
