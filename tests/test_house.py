"""The house keeps its shape: who imports whom, what the app loads, which words stand where."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app.glossary import terms
from app.navigation import PAGES
from qpruner_core.domain.record import STEPS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path: path.read_text()
    for folder in ("app", "pages", "qpruner_core")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

OPEN_EVERY_PAGE = """
import json, sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
root = Path(sys.argv[1])
at = AppTest.from_file(root / "app" / "main.py", default_timeout=60).run()
failed = [str(each.message) for each in at.exception]
for key in sys.argv[2:]:
    at.switch_page(f"../pages/{key}.py").run()
    failed += [f"{key}: {each.message}" for each in at.exception]
heavy = [m for m in ("torch", "transformers", "peft", "bitsandbytes") if m in sys.modules]
print(json.dumps({"failed": failed, "heavy": heavy}))
"""


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_app_draws_every_page_without_loading_torch(tmp_path: Path) -> None:
    """On the real store and job client, in a process of its own."""
    keys = [entry.key for entry in PAGES]
    found = subprocess.run(
        [sys.executable, "-c", OPEN_EVERY_PAGE, str(ROOT), *keys],
        capture_output=True,
        text=True,
        check=True,
        env={"QPRUNER_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        cwd=ROOT,
        timeout=180,
    )
    assert json.loads(found.stdout.splitlines()[-1]) == {"failed": [], "heavy": []}


def test_every_page_is_in_the_menu_once() -> None:
    files = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if path.stem != "__init__")
    assert files == sorted(entry.key for entry in PAGES)


def used_terms() -> set[str]:
    text = "\n".join(source for path, source in SOURCES.items() if path.is_relative_to(ROOT))
    named = re.findall(r'(?:tip\(|term=)"([a-z_]+)"', text)
    # Named through a variable: the start buttons, a plan's field and the two origins.
    started = re.findall(r'widgets\.start\(\s*record,\s*asked,\s*"([a-z]+)"', text)
    return {*named, *(f"start_{step}" for step in started), "plan", "measured", "estimated"}


def test_every_used_term_has_a_tooltip_and_every_tooltip_is_used() -> None:
    assert used_terms() == set(terms())


def test_a_start_button_names_a_step_of_the_line() -> None:
    started = {term.removeprefix("start_") for term in used_terms() if term.startswith("start_")}
    assert started <= set(STEPS)


def test_only_state_names_session_keys() -> None:
    others = [
        path.name
        for path, source in SOURCES.items()
        if "session_state" in source and path != ROOT / "app" / "state.py"
    ]
    assert others == []


def test_bytes_are_written_by_one_formatter() -> None:
    pattern = re.compile(r"\b[KMG]i?B\b")
    others = [
        path.name
        for path, source in SOURCES.items()
        if path.is_relative_to(ROOT / "app") or path.is_relative_to(ROOT / "pages")
        if pattern.search(source)
    ]
    assert others == []


@pytest.mark.parametrize("folder", ["app", "pages", "qpruner_core"])
def test_nothing_pickles_sleeps_or_spawns_a_shell(folder: str) -> None:
    pattern = re.compile(r"\bimport pickle\b|torch\.load\(|time\.sleep\(|shell=True")
    found = [
        path.name
        for path, source in SOURCES.items()
        if path.is_relative_to(ROOT / folder) and pattern.search(source)
    ]
    assert found == []


def test_no_file_in_app_hides_a_module_of_python() -> None:
    names = {path.stem for path in (ROOT / "app").glob("*.py")} - {"__init__"}
    assert names & sys.stdlib_module_names == set()


def test_the_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.stem
        for path in (ROOT / "qpruner_core").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__", "__main__"}
    assert {room for room in rooms if f"`{room}" not in page} == set()


def test_the_theme_offers_enough_colours_for_plotly() -> None:
    with (ROOT / ".streamlit" / "config.toml").open("rb") as file:
        theme = tomllib.load(file)["theme"]
    assert len(theme["chartCategoricalColors"]) >= 10


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
