from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from app import downloads
from qpruner_core.domain.record import ExportOutcome
from qpruner_core.domain.spec import ExportSpec, ModelSpec, RunSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.store.records import RunStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export-1"
    (made / "adapter").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (made / "adapter" / "config.json").write_text("{}")
    (made / "empty.txt").write_bytes(b"")
    return made


def test_the_stream_is_a_whole_zip_with_every_file(folder: Path) -> None:
    data = b"".join(downloads.zip_blocks(folder))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    expected = {
        f"export-1/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in downloads.files_of(folder)
    }
    assert found == expected


def test_the_announced_length_is_the_length(folder: Path) -> None:
    blocks = list(downloads.zip_blocks(folder))
    assert downloads.zip_bytes(folder) == sum(map(len, blocks))


def test_no_block_is_larger_than_one_read(folder: Path) -> None:
    assert max(map(len, downloads.zip_blocks(folder))) < downloads.BLOCK_BYTES + 1000


def test_the_same_folder_gives_the_same_zip(folder: Path) -> None:
    assert list(downloads.zip_blocks(folder)) == list(downloads.zip_blocks(folder))


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert "link" not in {path.name for path in downloads.files_of(folder)}


def exported(home: Path, path: Path) -> tuple[str, str]:
    store = RunStore(home)
    record = store.create(RunSpec(model=ModelSpec(source="demo")))
    outcome = ExportOutcome(
        spec=ExportSpec(),
        path=str(path),
        size_bytes=1,
        planned_bytes=1,
        reload_logits_equal=True,
        max_logit_difference=0.0,
        files={},
    )
    store.write(replace(record, export=outcome))
    return record.run_id, downloads.zip_name(record.run_id, "hf_mixed")


@pytest.mark.parametrize("name", ["../../etc/passwd", "", ".hidden", "a b.zip", "x\\y.zip"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    run_id, _ = exported(tmp_path, tmp_path)
    with pytest.raises(QPrunerError, match="link on the Export page"):
        downloads.export_folder(tmp_path, run_id, name)


def test_an_export_outside_the_home_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run_id, name = exported(tmp_path / "home", tmp_path / "elsewhere")
    with pytest.raises(QPrunerError, match="outside the home folder"):
        downloads.export_folder(tmp_path / "home", run_id, name)


def test_an_export_inside_the_home_is_found(tmp_path: Path) -> None:
    path = tmp_path / "home" / "x"
    path.mkdir(parents=True)
    run_id, name = exported(tmp_path / "home", path)
    assert downloads.export_folder(tmp_path / "home", run_id, name) == path


def test_another_runs_name_is_refused(tmp_path: Path) -> None:
    run_id, _ = exported(tmp_path, tmp_path)
    with pytest.raises(QPrunerError, match="no finished export"):
        downloads.export_folder(tmp_path, run_id, "other-hf_mixed.zip")
