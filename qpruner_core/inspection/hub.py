"""Questions to the model hub, asked within bounded time and answered with a sentence when it does
not.

A token is read from the environment variable ``HF_TOKEN`` at the moment of asking and handed to
the client alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import (
    BadInputError,
    HubUnreachableError,
    ModelNotFoundError,
    StorageFullError,
)
from qpruner_core.inspection.folders import (
    CONFIG,
    INDEX,
    SINGLE,
    check_weight_files,
    parse_json_table,
)
from qpruner_core.inspection.headers import DTYPE_BITS, TensorHeader

TIMEOUT_SECONDS = 10.0
"""How long the hub may stay silent."""

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What a model needs; pickles are never downloaded."""
_NOT_FILES = ("*/*", "consolidated*")
"""Other formats of the same weights that some repositories carry along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A repository as the hub describes it, at one commit."""

    repo: str
    """Hub id."""
    commit: str
    """Commit that the asked-for revision stands for."""
    config: dict[str, Any]
    """Content of `config.json`."""


def token() -> str | bool:
    """Return the token of the environment, or False, which also keeps a token saved on disk out of
    use.
    """
    return os.environ.get("HF_TOKEN") or False


def describe(spec: ModelSpec) -> HubModel:
    """Return commit and config of a hub model, having checked that it ships safetensors.

    Raises:
        ModelNotFoundError: The repository, the revision or its config is not there.
        UnsupportedModelError: It ships pickles only.
        HubUnreachableError: The hub does not answer within `TIMEOUT_SECONDS`, or refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415  only hub ids pay for it

    with _in_sentences(spec.source, spec.revision):
        info = HfApi().model_info(
            spec.source, revision=spec.revision, timeout=TIMEOUT_SECONDS, token=token()
        )
        names = {sibling.rfilename for sibling in info.siblings or ()}
        commit = str(info.sha)
        check_weight_files(names, spec.source)
        if CONFIG not in names:
            raise ModelNotFoundError(
                f"The repository {spec.source!r} holds no {CONFIG}. Choose one that holds a whole "
                "model."
            )
        path = hf_hub_download(
            spec.source, CONFIG, revision=commit, token=token(), etag_timeout=TIMEOUT_SECONDS
        )
    return HubModel(repo=spec.source, commit=commit, config=parse_json_table(Path(path)))


def fetch_headers(spec: ModelSpec, commit: str) -> dict[str, TensorHeader]:
    """Return tensor name -> header, read by range requests: no weight is downloaded.

    Raises:
        BadInputError: A file of the repository is not valid safetensors.
        HubUnreachableError: The hub does not answer, or refuses.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  only hub ids pay for it
    from huggingface_hub.errors import (  # noqa: PLC0415
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    with _in_sentences(spec.source, spec.revision):
        try:
            whole = HfApi().get_safetensors_metadata(spec.source, revision=commit, token=token())
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise BadInputError(
                f"The hub's weight files of {spec.source!r} are not valid safetensors. Choose "
                f"another revision, or a folder with {SINGLE} or {INDEX}."
            ) from error
    headers: dict[str, TensorHeader] = {}
    for file, metadata in whole.files_metadata.items():
        for name, tensor in metadata.tensors.items():
            if tensor.dtype not in DTYPE_BITS:
                raise BadInputError(
                    f"{spec.source!r} stores {name!r} as {tensor.dtype!r}, which is no known "
                    "dtype. Choose another revision."
                )
            headers[name] = TensorHeader(
                name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), file=file
            )
    return headers


def download(spec: ModelSpec) -> Path:
    """Download config, tokenizer and safetensors and return the folder, named after its commit.

    Python files come along only when the person trusts the repository. Asked for by revision, not
    by commit, so that the same revision is found again without the hub.

    Raises:
        HubUnreachableError: The hub stops answering, or refuses.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  only hub ids pay for it

    with _in_sentences(spec.source, spec.revision):
        return Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=_patterns(spec),
                ignore_patterns=list(_NOT_FILES),
                token=token(),
                etag_timeout=TIMEOUT_SECONDS,
            )
        )


def _patterns(spec: ModelSpec) -> list[str]:
    return [*_FILES, "*.py"] if spec.trust_remote_code else list(_FILES)


def cached_folder(spec: ModelSpec) -> Path | None:
    """Return the folder of an earlier download with its weights, None when there is none; asks no
    network.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  only hub ids pay for it
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=_patterns(spec),
                ignore_patterns=list(_NOT_FILES),
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    has_weights = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return folder if has_weights and (folder / CONFIG).is_file() else None


def dataset_file(repo: str, name: str) -> Path:
    """Return the local copy of one file of a data set, downloaded when it is not there yet.

    Raises:
        ModelNotFoundError: The repository or file is not there.
        HubUnreachableError: The hub does not answer in time, or refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415  only hub ids pay for it
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    with _in_sentences(repo, None):
        # Asked first because the download itself retries for long when nobody answers.
        HfApi().dataset_info(repo, timeout=TIMEOUT_SECONDS, token=token())
        return Path(hf_hub_download(repo, name, repo_type="dataset", token=token()))


@contextmanager
def _in_sentences(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub client raises into errors that a person can act on."""
    from huggingface_hub import errors  # noqa: PLC0415  only hub ids pay for it

    # The client's own base class is its HTTP library's; both bases together also cover failed
    # connections.
    no_answer: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    shown = repr(repo) + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubUnreachableError(
            f"The hub repository {shown} is gated and this access was refused. Accept its terms "
            "on its hub page, set the environment variable HF_TOKEN to a token of that account, "
            "and start again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"The hub knows {repo!r}, but no revision {revision!r} of it. Give a "
            "branch, a tag or a commit."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"The hub shows no repository {shown}, or hides it. Check the spelling; for a private "
            "one set the environment variable HF_TOKEN."
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(
            f"{repo!r} is neither a folder that exists nor a hub id. Give 'demo', a "
            "folder, or an id such as 'org/name'."
        ) from error
    except no_answer as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StorageFullError(
                f"The disk is full while downloading {shown}. Free space, or point HF_HOME to a "
                "larger disk."
            ) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"answers {status}" if status else "does not answer"
        raise HubUnreachableError(
            f"The model hub {what} when asked for {shown}; a network connection to it is needed. "
            "Check the network (and HF_ENDPOINT), or give a local folder."
        ) from error
