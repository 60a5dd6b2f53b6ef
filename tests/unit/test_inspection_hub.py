"""Hub ids, against a hub of our own on the loopback that speaks as much of its protocol as is
needed."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import (
    BadInputError,
    HubUnreachableError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from qpruner_core.inspection import inspect_model, model_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = ModelSpec(source="org/tiny")


@dataclass
class Hub:
    folder: Path
    refusal: tuple[int, str] | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """One repository, ``org/tiny``, whose branch ``main`` is `COMMIT`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        path = urlsplit(self.path).path
        hub.requests.append((self.command, path, dict(self.headers)))
        if hub.refusal is not None:
            return self.answer(hub.refusal[0], b"{}", {"X-Error-Code": hub.refusal[1]})
        parts = path.strip("/").split("/")
        if parts[:4] == ["api", "models", "org", "tiny"]:
            if len(parts) > 5 and parts[5] not in ("main", COMMIT):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self.answer_api(parts[4:5] == ["tree"])
        if parts[:3] == ["org", "tiny", "resolve"]:
            return self.answer_file(hub.folder / parts[4])
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer_api(self, tree):
        files = sorted(self.server.hub.folder.iterdir())
        if tree:
            body = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
        else:
            siblings = [{"rfilename": f.name} for f in files]
            body = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer_file(self, file):
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"', "Accept-Ranges": "bytes"}
        if not file.is_file():
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        asked = self.headers.get("Range")
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            piece = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = (
                f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
            )
            return self.answer(206, piece, headers)
        return self.answer(200, content, headers)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def reach(monkeypatch, tmp_path):
    """Point the hub client to a port of the loopback."""

    def point(port):
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        close_session()

    yield point
    close_session()


@pytest.fixture
def hub(reach, tiny_folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub(tiny_folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    reach(server.server_port)
    yield server.hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_model_is_described_without_downloading_a_weight(hub, tiny_layout):
    card = inspect_model(SPEC)
    assert card.layout == tiny_layout
    assert card.parameters == tiny_layout.parameters
    assert (card.revision, card.title, card.dtype) == (COMMIT, "tiny", "F32")
    gets = [h for m, p, h in hub.requests if m == "GET" and p.endswith(".safetensors")]
    assert all("range" in {name.lower() for name in headers} for headers in gets)


def test_a_downloaded_model_lies_in_a_folder_of_its_commit(hub):
    (hub.folder / "pytorch_model.bin").write_bytes(b"pickle")
    (hub.folder / "evil.py").write_text("raise SystemExit")
    folder = model_folder(SPEC)
    assert folder.name == COMMIT
    found = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found
    assert not found & {"pytorch_model.bin", "evil.py"}


def test_code_comes_along_only_when_it_is_trusted(hub):
    (hub.folder / "modeling_x.py").write_text("x = 1")
    folder = model_folder(ModelSpec(source="org/tiny", trust_remote_code=True))
    assert (folder / "modeling_x.py").is_file()


def test_a_downloaded_model_answers_when_the_hub_is_gone(hub):
    card = inspect_model(SPEC)
    model_folder(SPEC)
    hub.refusal = (503, "")
    assert inspect_model(SPEC) == card
    assert model_folder(SPEC).name == COMMIT


def test_a_hub_that_nobody_reaches_is_said_at_once(reach):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reach(unused.getsockname()[1])
        with pytest.raises(HubUnreachableError, match="does not answer when asked for 'org/tiny'"):
            inspect_model(SPEC)


def test_being_told_to_stay_offline_is_said_too():
    assert constants.HF_HUB_OFFLINE
    with pytest.raises(HubUnreachableError, match="give a local folder"):
        inspect_model(ModelSpec(source="org/never-downloaded"))


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ((500, ""), HubUnreachableError, "answers 500"),
        ((403, "GatedRepo"), HubUnreachableError, "gated.*HF_TOKEN"),
        ((404, "RepoNotFound"), ModelNotFoundError, "no repository 'org/tiny'"),
        ((401, "RepoNotFound"), ModelNotFoundError, "HF_TOKEN"),
    ],
)
def test_a_refusal_of_the_hub_is_a_sentence(hub, refusal, kind, words):
    hub.refusal = refusal
    with pytest.raises(kind, match=words):
        inspect_model(SPEC)


def test_an_unknown_revision_is_said(hub):
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        inspect_model(ModelSpec(source="org/tiny", revision="v9"))


def test_a_repository_with_pickles_alone_is_refused(hub):
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="only as pickles"):
        inspect_model(SPEC)


def test_a_repository_without_a_config_is_said(hub):
    (hub.folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        inspect_model(SPEC)


def test_a_damaged_file_on_the_hub_is_said(hub):
    (hub.folder / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"x" * 16)
    with pytest.raises(BadInputError, match="not valid safetensors"):
        inspect_model(SPEC)


def test_a_token_goes_to_the_hub_and_nowhere_else(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    card = inspect_model(SPEC)
    sent = {name.lower(): value for name, value in hub.requests[0][2].items()}
    assert sent["authorization"] == "Bearer hf_secret"
    assert "hf_secret" not in repr(card)
    hub.refusal = (403, "GatedRepo")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(HubUnreachableError) as refused:
        inspect_model(SPEC)
    assert "hf_secret" not in str(refused.value)


def test_a_token_saved_on_disk_is_not_used(hub, monkeypatch, tmp_path):
    saved = tmp_path / "token"
    saved.write_text("hf_saved")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(saved))
    inspect_model(SPEC)
    assert all("authorization" not in {n.lower() for n in h} for _, _, h in hub.requests)
