"""An output head that lies beside the embedding which the config says it is.

Stock transformers ties the two only where the files agree with the config; what is loaded, counted
and written layer by layer would else be three models. One that disagrees is refused everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from qpruner_core.errors import BadInputError
from qpruner_core.inspection.headers import TensorHeader

HEADS = ("lm_head.weight", "embed_out.weight")
"""What checkpoints call the weight of the output head."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""How the name of the weight of the input embedding ends."""
_CHUNK_BYTES = 2**22


def check_tied_head(folder: Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse a head that is not the embedding, for a config that says it is; two tensors at most
    are read, a few megabytes at a time.

    Raises:
        BadInputError: They differ in dtype, shape or a value.
    """
    head = next((headers[name] for name in HEADS if name in headers), None)
    table = next((headers[name] for name in headers if name.endswith(_EMBEDDINGS)), None)
    if head is None or table is None or _are_equal(folder, head, table):
        return
    raise BadInputError(
        f"The config says that the output head is the embedding (tie_word_embeddings), but the "
        f"files hold {head.name!r} with other values than {table.name!r}. Set tie_word_embeddings "
        "to false in config.json to use both, or remove the head from the files."
    )


def _are_equal(folder: Path, one: TensorHeader, other: TensorHeader) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pieces = zip(_pieces(folder, one), _pieces(folder, other), strict=True)
    return all(ours == theirs for ours, theirs in pieces)


def _pieces(folder: Path, tensor: TensorHeader) -> Iterator[bytes]:
    """Yield the bytes of a tensor, in order."""
    with (folder / tensor.file).open("rb") as file:
        length: int = struct.unpack("<Q", file.read(8))[0]
        file.seek(8 + length + tensor.begin)
        for first in range(0, tensor.size_bytes, _CHUNK_BYTES):
            yield file.read(min(_CHUNK_BYTES, tensor.size_bytes - first))
