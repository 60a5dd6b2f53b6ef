"""Files that a person gave to a run through the browser.

uploads/<SHA-256, its beginning>/<name>     one folder per content, so that names never collide

Nothing of the path that the browser states is used but the file's own name, and of that only plain
characters.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qpruner_core.domain.recovery import HASH_CHARACTERS, UPLOADS
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError, QPrunerError
from qpruner_core.store.files import write_whole
from qpruner_core.store.names import check_plain

FOLDER = UPLOADS
_LONGEST_NAME = 120


def plain_name(stated: str) -> str:
    """Return the last part of a path as a plain file name: other characters become dashes.

    Raises:
        BadInputError: Nothing plain is left.
    """
    last = re.split(r"[/\\]", stated)[-1]
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).lstrip("-._")
    stem, dot, suffix = cleaned.rpartition(".")
    return check_plain(f"{stem[:_LONGEST_NAME]}{dot}{suffix[:16]}" if dot else cleaned)


def keep(run: Path, stated: str, content: bytes, check: Callable[[Path], object]) -> Path:
    """Keep a file in a run's folder once it is found to be good; return where it lies.

    Args:
        run: Folder of the run.
        stated: What the browser calls the file.
        content: Its bytes.
        check: Raises where the file, at the path that it is given, is no good.

    Raises:
        QPrunerError: What ``check`` raises, the path in its sentence replaced by the name.
        BadInputError: The name holds nothing plain, or the run has been deleted.
        StorageFullError: The disk does not hold it.
    """
    name = plain_name(stated)
    target = run / FOLDER / hashlib.sha256(content).hexdigest()[:HASH_CHARACTERS] / name
    aside = run / FOLDER / f".new-{secrets.token_hex(4)}"
    if not run.is_dir():
        raise BadInputError(
            f"There is no run {run.name} any more that {name} could be given to. Choose another "
            f"one on the Runs page."
        )
    aside.mkdir(parents=True)
    try:
        write_whole(aside / name, content)
        check(aside / name)
        target.parent.mkdir(exist_ok=True)
        (aside / name).replace(target)
    except QPrunerError as error:
        sentence = str(error).replace(str(aside / name), name)
        raise type(error)(sentence) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def listed(run: Path) -> tuple[Path, ...]:
    """Return the files that a run was given, by name."""
    found = (path for path in (run / FOLDER).glob("[!.]*/*") if path.is_file())
    return tuple(sorted(found, key=lambda path: (path.name, path)))


def moved(spec: RunSpec, source: Path, target: Path) -> RunSpec:
    """Return a spec whose training file, where it was given to one run, is that of its copy.

    Args:
        spec: What is asked for.
        source: Folder of the run that was copied.
        target: Folder of the copy.
    """
    training = Path(spec.recovery.training)
    if not training.is_relative_to(source / FOLDER):
        return spec
    own = str(target / training.relative_to(source))
    return replace(spec, recovery=replace(spec.recovery, training=own))
