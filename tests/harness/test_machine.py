import importlib.util
import json
import re
import socket
from dataclasses import replace
from pathlib import Path

from llmlab.harness.machine import Cache, describe, speed_features


def test_the_description_is_json_and_its_digest_stable():
    machine = describe()
    describe.cache_clear()
    again = describe()
    assert json.loads(json.dumps(machine.as_dict())) == again.as_dict()
    assert machine.digest == again.digest
    assert len(machine.digest) == 12


def test_anything_that_changes_speed_changes_the_digest():
    machine = describe()
    for change in (
        {"threads": machine.threads + 1},
        {"code_paths": {**machine.code_paths, "numpy": "openblas Haswell"}},
        {"versions": {**machine.versions, "torch": "0"}},
        {"caches": (*machine.caches, Cache("L4", 1, 1))},
    ):
        assert replace(machine, **change).digest != machine.digest


def test_no_host_name_and_no_path_is_told():
    text = json.dumps(describe().as_dict())
    assert str(Path.home()) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert "/" not in text


def test_the_processor_its_memory_and_code_paths_are_there():
    machine = describe()
    assert machine.cpu
    assert machine.threads >= 1
    assert machine.memory_gib >= 1
    assert machine.versions["numpy"] != "absent"
    assert machine.code_paths["numpy"]
    assert machine.device_name("cpu") == machine.cpu


def test_only_instruction_sets_that_decide_speed_are_kept():
    assert speed_features(["vme", "avx2", "avx512_bf16", "sse4_2"]) == ("avx2", "avx512bf16", "sse4_2")


def test_a_bare_image_is_described_too(monkeypatch):
    present = importlib.util.find_spec
    bare = {"cpuinfo", "psutil", "threadpoolctl", "torch", "numba"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in bare else present(name))
    describe.cache_clear()
    machine = describe()
    describe.cache_clear()
    assert machine.cpu
    assert machine.memory_gib >= 1
    assert machine.code_paths.keys() == {"numpy"}
