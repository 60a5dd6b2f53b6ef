"""Streams an export as one zip from disk: stored entries, one block in memory at a time."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from qpruner_core.errors import ModelNotFoundError, NotReadyError, QPrunerError
from qpruner_core.export.snippets import ADAPTER_FOLDER
from qpruner_core.store.home import home
from qpruner_core.store.records import RunStore

ROUTE = "/download"
WEIGHTS = ".safetensors"
BLOCK_BYTES = 1 << 20
LAYER_BY_LAYER = "layer-by-layer"
"""Stands in a zip's name for a format, where the model was compressed layer by layer."""
_served = threading.Event()
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""Entries carry no time of their own, so that the same export gives the same zip."""


class _Tray(io.RawIOBase):
    """Takes what the zip writer gives out until the server carries it off; cannot seek, so
    nothing is rewritten.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        self._parts.append(block)
        return len(block)

    def carry_off(self) -> bytes:
        block, self._parts = b"".join(self._parts), []
        return block


def zip_name(run_id: str, export_format: str) -> str:
    """Return the plain file name of a run's download."""
    return f"{run_id}-{export_format}.zip"


def export_folder(store_home: Path, run_id: str, name: str) -> Path:
    """Return the folder that a download streams.

    Raises:
        ModelNotFoundError: The name is no plain file name of that run, or the folder is gone.
        NotReadyError: The run has no finished export, or it lies outside the home folder.
    """
    if not (_PLAIN_NAME.fullmatch(run_id) and _PLAIN_NAME.fullmatch(name)):
        raise ModelNotFoundError(
            "The download's name holds characters that no export has. Use the link on the Export "
            "page."
        )
    record = RunStore(store_home).read(run_id)
    folders: dict[str, str] = {}
    if record.compressed is not None:
        folders[zip_name(run_id, LAYER_BY_LAYER)] = record.compressed.path
    if record.export is not None:
        folders[zip_name(run_id, record.export.spec.format)] = record.export.path
    if name not in folders:
        raise NotReadyError(
            f"Run {run_id} has no finished export named {name}. Export it first, on the Export "
            "page."
        )
    folder = Path(folders[name]).resolve()
    if not folder.is_relative_to(store_home.resolve()):
        raise NotReadyError(
            f"This export lies in {folder}, outside the home folder, and is not sent over the "
            "network. "
            f"Copy it from there, or export again without a folder of your own."
        )
    if not folder.is_dir():
        raise ModelNotFoundError(f"The export folder {folder} is gone. Export the run again.")
    return folder


def files_of(folder: Path) -> list[Path]:
    """Return the regular files of an export, in a fixed order; links are left out."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def adapter_bytes(folder: Path) -> int:
    """Return the bytes of the adapter's weights in an export; 0 where it has none."""
    inside = folder / ADAPTER_FOLDER
    if not inside.is_dir():
        return 0
    return sum(path.stat().st_size for path in files_of(inside) if path.suffix == WEIGHTS)


def zip_blocks(folder: Path, empty: bool = False) -> Iterator[bytes]:
    """Yield a zip of the folder block by block; `empty` writes the same entries without their
    content.
    """
    tray = _Tray()
    with zipfile.ZipFile(tray, "w", zipfile.ZIP_STORED) as archive:
        for path in files_of(folder):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo(name, date_time=_FIRST_DAY)
            info.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as entry:
                while not empty and (block := source.read(BLOCK_BYTES)):
                    entry.write(block)
                    yield tray.carry_off()
            yield tray.carry_off()
    yield tray.carry_off()


def zip_bytes(folder: Path) -> int | None:
    """Return the length of the zip in bytes; None where large entries would change its
    directory.
    """
    content = sum(path.stat().st_size for path in files_of(folder))
    if content > zipfile.ZIP64_LIMIT // 2:
        return None
    return content + sum(len(block) for block in zip_blocks(folder, empty=True))


def download(request: Request) -> Response:
    """Answer ``GET /download/{run_id}/{name}``."""
    run_id, name = request.path_params["run_id"], request.path_params["name"]
    try:
        folder = export_folder(home(), run_id, name)
    except QPrunerError as error:
        return PlainTextResponse(str(error), status_code=404)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    length = zip_bytes(folder)
    if length is not None:
        headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/zip")
    return StreamingResponse(zip_blocks(folder), headers=headers, media_type="application/zip")


def route() -> Route:
    """Return the route for the server to mount; from then on pages link to it."""
    _served.set()
    return Route(f"{ROUTE}/{{run_id}}/{{name}}", download, methods=["GET", "HEAD"])


def is_served() -> bool:
    """Whether this server has the route; plain `streamlit run` has not."""
    return _served.is_set()
