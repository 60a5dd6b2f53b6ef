"""Starting and stopping: the address is printed when it answers, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from time import monotonic

import psutil
import pytest

from app import crew, launch
from qpruner_core.errors import BadInputError, NotReadyError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = launch.Patience(
    answer=15.0, ending=1.0, look=0.02, quick_death=5.0, first_pause=0.02, quick_deaths=5
)
SERVER = """
import http.server, os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open(sys.argv[1], "a").write(f"{os.getpid()} {child.pid}\\n")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
port = int(os.environ["STREAMLIT_SERVER_PORT"])
http.server.HTTPServer((os.environ["STREAMLIT_SERVER_ADDRESS"], port), Answer).serve_forever()
"""
STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
signal.pause()
"""
DIES = (
    "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); sys.exit(int(sys.argv[2]))"
)


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind((launch.HOST, 0))
        return probe.getsockname()[1]


def until(holds, what):
    limit = monotonic() + 20.0
    while not (found := holds()):
        assert monotonic() < limit, f"waited too long for {what}"
        Flag().wait(0.02)
    return found


def numbers(path):
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_alive(number):
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def python(code, *arguments):
    return (sys.executable, "-c", code, *map(str, arguments))


class Started:
    """`launch` in a thread, with stand-ins for app and worker that write down their ids."""

    def __init__(self, folder, server=SERVER, worker=STUBBORN, *worker_arguments):
        self.port, self.stop, self.error = free_port(), Flag(), None
        self.server_ids, self.worker_ids = folder / "server.txt", folder / "worker.txt"
        self._commands = (
            python(server, self.server_ids),
            python(worker, self.worker_ids, *worker_arguments),
        )
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            launch.launch(self.port, {}, self.stop, self._commands, PATIENCE)
        except (BadInputError, NotReadyError) as error:
            self.error = error

    def ended(self):
        self.thread.join(20.0)
        assert not self.thread.is_alive()
        return self.error

    def ids(self):
        return [*numbers(self.server_ids), *numbers(self.worker_ids)]


@pytest.fixture
def words(monkeypatch):
    said = []
    monkeypatch.setattr(launch, "say", said.append)
    return said


def test_the_address_is_printed_when_it_answers_and_stopping_leaves_no_process(tmp_path, words):
    started = Started(tmp_path)
    address = until(lambda: words, "the address")[0]
    assert f"http://127.0.0.1:{started.port}" in address
    until(lambda: len(started.ids()) == 3, "app, its child and worker")
    assert all(is_alive(number) for number in started.ids())
    started.stop.set()
    assert started.ended() is None
    until(lambda: not any(map(is_alive, started.ids())), "all processes to be gone")


def test_a_worker_that_was_killed_is_started_again(tmp_path, words):
    started = Started(tmp_path)
    first = until(lambda: numbers(started.worker_ids), "the worker")[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: len(numbers(started.worker_ids)) == 2, "the next worker")
    assert any("exit code -9; it is started again" in said for said in words)
    started.stop.set()
    assert started.ended() is None
    assert not any(map(is_alive, numbers(started.worker_ids)))


def test_several_workers_are_started_watched_and_stopped(tmp_path, words):
    files = [tmp_path / f"worker-{number}.txt" for number in (0, 1)]
    stop, port = Flag(), free_port()
    commands = (
        python(SERVER, tmp_path / "server.txt"),
        *(python(STUBBORN, file) for file in files),
    )
    thread = Thread(target=launch.launch, args=(port, {}, stop, commands, PATIENCE), daemon=True)
    thread.start()
    first = until(lambda: numbers(files[0]) and numbers(files[1]), "both workers")[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: len(numbers(files[1])) == 2, "the next of the second")
    assert len(numbers(files[0])) == 1
    stop.set()
    thread.join(20.0)
    assert not any(is_alive(number) for file in files for number in numbers(file))


def test_workers_on_the_cores_have_seats_and_share_the_threads(monkeypatch):
    assert crew.devices("auto", 1) == ("auto",)
    assert crew.devices("auto", 3) == ("cpu", "cpu:1", "cpu:2")
    assert crew.devices("cuda:0, cuda:1", 1) == ("cuda:0", "cuda:1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert crew.threads(3) == {"OMP_NUM_THREADS": "2"}
    assert crew.threads(16) == {"OMP_NUM_THREADS": "1"}
    assert crew.threads(1) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert crew.threads(3) == {}


@pytest.mark.parametrize(("device", "n_workers"), [("cuda:0", 2), ("auto", 0)])
def test_workers_that_cannot_be_are_refused_before_anything_starts(device, n_workers):
    with pytest.raises(BadInputError, match=r"\. (Give|Name)"):
        crew.devices(device, n_workers)


def test_a_worker_that_keeps_dying_is_given_up_with_a_sentence_and_the_app_goes_on(
    tmp_path, words
):
    started = Started(tmp_path, SERVER, DIES, 1)
    until(
        lambda: any("died 5 times in a row (exit code 1)" in said for said in words), "giving up"
    )
    assert len(numbers(started.worker_ids)) == 5
    assert launch.answers(started.port)
    started.stop.set()
    assert started.ended() is None


def test_a_worker_that_said_why_it_cannot_run_is_not_started_again(tmp_path, words):
    started = Started(tmp_path, SERVER, DIES, launch.FIXABLE)
    until(lambda: any("without a worker of its own" in said for said in words), "the sentence")
    until(lambda: launch.answers(started.port), "the app")
    assert len(numbers(started.worker_ids)) == 1
    started.stop.set()
    assert started.ended() is None


def test_an_app_that_ends_by_itself_takes_the_worker_along(tmp_path, words):
    started = Started(tmp_path, "import sys; sys.exit(3)")
    error = started.ended()
    assert "exit code 3" in str(error)
    assert not any(map(is_alive, numbers(started.worker_ids)))


def test_a_port_in_use_is_answered_with_a_sentence_before_anything_starts(tmp_path):
    with closing(socket.socket()) as other:
        other.bind((launch.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        commands = (python(DIES, tmp_path / "ids.txt", 0),) * 2
        with pytest.raises(BadInputError, match=f"Port {port} .*PORT={port + 1}"):
            launch.launch(port, {}, Flag(), commands, PATIENCE)
    assert numbers(tmp_path / "ids.txt") == []


def test_a_port_that_cannot_be_is_answered_with_a_sentence():
    with pytest.raises(BadInputError, match="Port 70000"):
        launch.check_port(70000)


def test_nobody_answers_on_a_free_port():
    assert not launch.answers(free_port())


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path):
    with closing(socket.socket()) as other:
        other.bind((launch.HOST, 0))
        other.listen()
        said = subprocess.run(
            [sys.executable, "-m", "app.launch", "--port", str(other.getsockname()[1])],
            cwd=ROOT,
            env={**os.environ, "QPRUNER_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert said.returncode == 2
    assert "cannot be used" in said.stderr
    assert "Traceback" not in said.stderr


def test_app_and_worker_are_told_the_same_home_and_database(tmp_path, monkeypatch, words):
    told = []
    monkeypatch.setattr(launch, "launch", lambda *given: told.append(given[1]))
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    database = "postgresql://me@server/q"
    try:
        assert launch.main(["--home", str(tmp_path), "--database", database]) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert told == [{"QPRUNER_HOME": str(tmp_path), "QPRUNER_DATABASE": database}]
    assert words == ["Stopped. Unfinished jobs go on when you start again."]


def test_the_launcher_and_the_server_agree_on_the_command():
    code = "from app.server import SERVER_COMMAND as c; print(*c[1:])"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == list(launch.SERVER_COMMAND[1:])
