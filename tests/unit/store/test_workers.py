"""A worker is listed for as long as its process holds the lock, and a device has one."""

import subprocess
import sys

import pytest

from qpruner_core.errors import BadInputError
from qpruner_core.store import workers
from qpruner_core.store.workers import is_gone, living_workers, registered, worker_name

HOLD = """
import signal, sys
from pathlib import Path
from qpruner_core.store.workers import registered
with registered(Path(sys.argv[1]), "cuda:1", "Some card"):
    sys.stdout.write("here\\n")
    sys.stdout.flush()
    signal.pause()
"""


@pytest.fixture
def other(tmp_path):
    """A process that is the worker of `cuda:1`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.communicate()


def test_a_worker_is_listed_while_it_lives(tmp_path):
    assert living_workers(tmp_path) == ()
    with registered(tmp_path, "cpu", "cpu") as info:
        assert living_workers(tmp_path) == (info,)
        assert info.name == worker_name("cpu")
        assert info.device == "cpu"
    assert living_workers(tmp_path) == ()


def test_a_killed_worker_is_not_listed_and_leaves_its_place_to_the_next(tmp_path, other):
    listed = living_workers(tmp_path)
    assert [(worker.device, worker.pid) for worker in listed] == [("Some card", other.pid)]
    other.kill()
    other.wait()
    assert living_workers(tmp_path) == ()
    with registered(tmp_path, "cuda:1", "Some card") as info:
        assert living_workers(tmp_path) == (info,)


def test_a_device_has_one_worker_but_a_machine_has_several_devices(tmp_path, other, monkeypatch):
    monkeypatch.setattr(workers, "_TRIES", 1)
    with (
        pytest.raises(BadInputError, match=f"process {other.pid}"),
        registered(tmp_path, "cuda:1", "Some card"),
    ):
        pass
    with registered(tmp_path, "cpu", "cpu"):
        assert {worker.device for worker in living_workers(tmp_path)} == {"Some card", "cpu"}


def test_a_worker_that_has_not_written_its_line_yet_is_passed_over(tmp_path, other, monkeypatch):
    monkeypatch.setattr(workers, "_TRIES", 1)
    path = next((tmp_path / "workers").iterdir())
    path.write_text("")
    assert living_workers(tmp_path) == ()
    with (
        pytest.raises(BadInputError, match="just starting"),
        registered(tmp_path, "cuda:1", "Some card"),
    ):
        pass


def test_a_worker_is_gone_when_it_has_been_here_and_holds_its_place_no_more(tmp_path, other):
    name = worker_name("cuda:1")
    assert not is_gone(tmp_path, name)
    assert not is_gone(tmp_path, "elsewhere/cuda:1")
    other.kill()
    other.wait()
    assert is_gone(tmp_path, name)
    with registered(tmp_path, "cpu", "cpu") as info:
        assert not is_gone(tmp_path, info.name)
    assert is_gone(tmp_path, info.name)


def test_a_worker_says_how_much_memory_its_device_has(tmp_path):
    with registered(tmp_path, "cpu", "cpu", memory_bytes=2**34):
        assert living_workers(tmp_path)[0].memory_bytes == 2**34
