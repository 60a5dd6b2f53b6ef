"""What may not be committed is refused, without anything from a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / ".pre-commit-config.yaml"
KEY = "-----BEGIN {}PRIVATE KEY-----\n"  # whole only once a test has filled it


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(CONFIG, tmp_path)
    (tmp_path / "assets" / "demo").mkdir(parents=True)
    return tmp_path


def refused(repository: Path, hook: str, file: Path) -> bool:
    name = file.relative_to(repository).as_posix()
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", hook, "--files", name],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PRE_COMMIT_HOME": str(repository / ".git" / "home")},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert (name in done.stdout) == bool(done.returncode)
    return bool(done.returncode)


def test_nothing_is_fetched_and_every_tool_is_pinned() -> None:
    text = CONFIG.read_text()
    assert set(re.findall(r"repo: (\S+)", text)) == {"local"}
    pinned = (ROOT / "requirements-dev.txt").read_text().replace("import-linter", "lint-imports")
    tools = set(re.findall(r"entry: \.venv/bin/([\w-]+)", text))
    assert tools == {"ruff", "mypy", "lint-imports", "codespell"}
    assert {tool for tool in tools if f"{tool}==" not in pinned} == set()


@pytest.mark.parametrize(("size", "large"), [(250_000, False), (250_001, True)])
def test_large_files_are_refused_outside_the_demo(
    repository: Path, size: int, large: bool
) -> None:
    for name, is_refused in (("a file.bin", large), ("assets/demo/text.bin", False)):
        (repository / name).write_bytes(b"x" * size)
        assert refused(repository, "large-files", repository / name) == is_refused


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH ", "ENCRYPTED "])
def test_private_keys_are_refused(repository: Path, kind: str) -> None:
    (repository / "key.pem").write_text(KEY.format(kind))
    (repository / "public.pem").write_text("-----BEGIN PUBLIC KEY-----\n")
    assert refused(repository, "private-keys", repository / "key.pem")
    assert not refused(repository, "private-keys", repository / "public.pem")
