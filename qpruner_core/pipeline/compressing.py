"""A run's model, compressed layer by layer: where the folder goes, and what the record says of it.

The record names a folder before the folder has its name. A job that is killed between the two, or
right after, is begun again by the engine, and finds in the record what it had written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.progress import OnProgress
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.export.card import MANIFEST
from qpruner_core.models.device import Device
from qpruner_core.pipeline.streaming import compress
from qpruner_core.store.records import RunStore


def pinned(spec: RunSpec, record: RunRecord) -> RunSpec:
    """Return a spec of a run's model at the commit that the run was begun on; a branch may have
    moved since.
    """
    known = record.load
    if known is None or known.revision is None or spec.model != record.spec.model:
        return spec
    return replace(spec, model=replace(spec.model, revision=known.revision))


def compress_run(
    store: RunStore,
    run_id: str,
    spec: RunSpec,
    device: Device,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> CompressionOutcome:
    """Prune and write a run's model layer by layer, and fill the slot ``compressed``.

    A folder that was named, that the record says to hold just this, and whose manifest agrees, is
    taken as it is.

    Raises:
        QPrunerError: As `streaming.compress`; StoppedError among them.
    """
    spec = pinned(spec, store.read(run_id))
    out = spec.export.out
    known = store.read(run_id).compressed
    if known is not None and out is not None and known.spec == spec and _is_there(known, out):
        return known

    def tell_record(found: CompressionOutcome) -> None:
        store.write(replace(store.read(run_id), compressed=found))

    stem = f"layer-by-layer-{spec.export.format}"
    folder = Path(out) if out else store.artifact_folder(run_id, stem)
    found = compress(spec, folder, device, on_progress, should_stop, tell_record)
    tell_record(found)
    return found


def _is_there(known: CompressionOutcome, out: str) -> bool:
    """Whether the folder that was asked for lists the files that the record names."""
    path = Path(out) / MANIFEST
    if Path(known.path) != Path(out).absolute() or not path.is_file():
        return False
    listed = json.loads(path.read_text(encoding="utf-8")).get("files", {})
    return {name: entry["sha256"] for name, entry in listed.items()} == dict(known.files)
