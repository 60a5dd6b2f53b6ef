"""What measured numbers belong to: the weights, the text, the cut and the device.

Contents are hashed, as a file may be edited where it lies; a file is read again only when its size
or its time of change differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from qpruner_core.domain.record import RunRecord
from qpruner_core.inspection import model_folder
from qpruner_core.store.records import RunStore

HASHES = "file-hashes"
"""Stored value: path -> size, time of change and SHA-256 of every file that was hashed."""
_LENGTH = 16
_OF_A_MODEL = ("*.safetensors", "*.json")
_OF_TASKS = ("*.jsonl",)

Stamp = tuple[int, int, str]
"""Size in bytes, time of change in nanoseconds, SHA-256 of the contents."""


def digest_of(parts: object) -> str:
    """Return a short hash of plain values, equal for equal ones whatever the order of keys."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


class Fingerprints:
    """Hashes for one run; what is known of its files is kept beside its record."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._known: dict[str, Stamp] | None = None

    def weights(self, record: RunRecord) -> str:
        """Return what the model of a run is made of: the commit of a hub model, else a hash over
        weights, config and tokenizer files of its folder.
        """
        if record.load is not None and record.load.revision is not None:
            return f"commit {record.load.revision}"
        return self._files(model_folder(record.spec.model), _OF_A_MODEL)

    def measured(self, record: RunRecord, arithmetic: str) -> str:
        """Return what metrics of a plan depend on besides the plan; equal for equal numbers.

        Args:
            record: A run that has been pruned.
            arithmetic: Device, and how candidates are held on it.
        """
        if record.prune is None:
            raise ValueError("a run that has not been pruned measures no plan")
        levels = record.quantize.levels if record.quantize is not None else ()
        parts = {
            "weights": self.weights(record),
            "data": record.spec.data.asked(),
            "texts": self._texts(record),
            "cut": [asdict(record.prune.plan), record.prune.biases],
            "levels": [asdict(level.plan) for level in levels],
            "arithmetic": arithmetic,
        }
        if record.spec.search.recover_steps:
            parts["recovery"] = record.spec.recovery_in_trials()
            parts["training"] = self.training_text(record)
        return digest_of(parts)

    def evaluation_text(self, record: RunRecord) -> str:
        """Return a hash of the files that trials are measured on; empty where none is a file of
        the person's.
        """
        texts = self._texts(record)
        used = {name: texts[name] for name in ("heldout", "tasks") if name in texts}
        return digest_of(used) if used else ""

    def training_text(self, record: RunRecord) -> str:
        """Return a hash of the file that recovery trains on; empty where it is none of the
        person's.
        """
        path = Path(record.spec.recovery.training or record.spec.data.training).expanduser()
        return self._hash(path)[:_LENGTH] if path.is_file() else ""

    def _texts(self, record: RunRecord) -> dict[str, str]:
        data = record.spec.data
        named = {"calibration", "training", "heldout", "tasks"}
        paths = {name: Path(getattr(data, name)).expanduser() for name in sorted(named)}
        return {
            name: self._hash(path) if path.is_file() else self._files(path, _OF_TASKS)
            for name, path in paths.items()
            if path.exists()
        }

    def _files(self, folder: Path, patterns: Iterable[str]) -> str:
        paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
        lines = [f"{path.name} {self._hash(path)}" for path in paths]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_LENGTH]

    def _hash(self, path: Path) -> str:
        """Return the SHA-256 of a file's contents."""
        known = self._read()
        place, found = str(path.resolve()), path.stat()
        stamp = known.get(place)
        if stamp is None or stamp[:2] != (found.st_size, found.st_mtime_ns):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            stamp = (found.st_size, found.st_mtime_ns, digest)
            known[place] = stamp
            self._store.write_value(self._run_id, HASHES, known)
        return stamp[2]

    def _read(self) -> dict[str, Stamp]:
        if self._known is None:
            stored = self._store.read_value(self._run_id, HASHES, dict[str, Stamp])
            self._known = stored or {}
        return self._known
