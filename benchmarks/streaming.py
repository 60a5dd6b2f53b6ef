"""How much memory it takes to prune and quantise a model layer by layer.

A random Llama of at least 3 GB is written to disk tensor by tensor, pruned by 30 % with wanda, of
every layer the same share, and written in mixed precision by the command itself in a process of
its own, whose peak resident memory is read at its end. Also shown: a small model gives the same
folder as the line in memory, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import EXPORTERS
from qpruner_core.data import load_corpus
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import DataSpec, ImportanceSpec, ModelSpec, PruningSpec, RunSpec
from qpruner_core.export import ExportFacts
from qpruner_core.export.weights import weight_files, write_index
from qpruner_core.importance import score
from qpruner_core.inspection import demo_folder
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.models.sharded_writer import Planned, ShardedWriter
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_

MB = 10**6
LIBRARIES_BYTES = 600 * MB
LAYERS = 2.5
SHARD_BYTES = 10**9
RATIO, CRITERION, SCOPE, BUDGET = 0.3, "wanda", "per-layer", "0.4"
CHUNK_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What one compression of the large checkpoint came to."""

    found: Mapping[str, Any]
    """The command's document."""
    config: LlamaConfig
    on_disk: int
    """Bytes of the checkpoint."""
    folder_bytes: int
    """Bytes of the folder that was written."""
    seconds: float
    """Wall time of the command."""
    tokens: int
    differing: int
    """Files of a small model that differ from those made in memory."""

    @property
    def embedding(self) -> int:
        """Bytes of the input embedding at 16 bit."""
        return 2 * self.config.vocab_size * self.config.hidden_size

    @property
    def bound(self) -> float:
        """Most bytes that the command should hold."""
        layer: int = self.found["largest_layer_bytes"]
        return LAYERS * layer + self.embedding + LIBRARIES_BYTES


def measure(arguments: argparse.Namespace) -> form.Report:
    """Make the checkpoint, compress it in a child process, and compare a small one."""
    config = _config(quick=arguments.quick)
    with tempfile.TemporaryDirectory(prefix="qpruner-streaming-", dir=arguments.folder) as name:
        place = Path(name)
        on_disk = _random_checkpoint(config, place / "model")
        tokens = 1024 if arguments.quick else arguments.tokens
        seconds, found = _compress(place / "model", place / "out", _options(tokens))
        folder_bytes = sum(path.stat().st_size for path in (place / "out").iterdir())
        shutil.rmtree(place / "out")
        shutil.rmtree(place / "model")
        differing = _files_that_differ(place)
    measured = _Measured(
        found=found,
        config=config,
        on_disk=on_disk,
        folder_bytes=folder_bytes,
        seconds=seconds,
        tokens=tokens,
        differing=differing,
    )
    targets = _targets(measured, least_gb=0.0 if arguments.quick else 3.0)
    return form.Report(name="streaming", rows=_rows(measured), targets=targets)


def _rows(measured: _Measured) -> list[dict[str, form.Cell]]:
    found, embedding, bound = measured.found, measured.embedding, measured.bound
    return [
        _row("checkpoint on disk", measured.on_disk),
        _row("largest layer, 16 bit", found["largest_layer_bytes"]),
        _row("input embedding, 16 bit", embedding),
        _row("embedding and head, 16 bit", 2 * embedding),
        _row(f"bound: {LAYERS} x layer + input embedding + 600 MB", int(bound)),
        _row("bound: 2.5 x (layer + embedding) + 600 MB", int(bound + 1.5 * embedding)),
        _row("libraries alone, imported", _libraries()),
        _row("peak resident memory of the command", found["peak_memory_bytes"]),
        _row("folder written", measured.folder_bytes),
        _row("parameters before", found["parameters_before"], unit="parameters"),
        _row("parameters after", found["parameters_after"], unit="parameters"),
        _row("calibration tokens", measured.tokens, unit="tokens"),
        *(_row(f"pass: {key}", value, unit="s") for key, value in found["seconds"].items()),
        _row("the command", measured.seconds, unit="s"),
        _row(
            "small model: files that differ from those made in memory",
            measured.differing,
            unit="files",
        ),
    ]


def _targets(measured: _Measured, least_gb: float) -> list[form.Target]:
    found = measured.found
    return [
        form.Target(
            name="peak over the bound",
            value=found["peak_memory_bytes"] / measured.bound,
            target=1.0,
        ),
        form.Target(
            name="checkpoint on disk, GB",
            value=measured.on_disk / 10**9,
            target=least_gb,
            at_most=False,
        ),
        form.Target(name="files that differ from memory", value=measured.differing, target=0.0),
        form.Target(
            name="parameters left over those asked for, share of the layers",
            value=_missed_ratio(found, measured.config),
            target=0.01,
        ),
    ]


def _config(*, quick: bool) -> LlamaConfig:
    """Return the shape: layers of 94 MB at 16 bit, 32 of them; six when quick."""
    return LlamaConfig(
        vocab_size=8_000 if quick else 32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=6 if quick else 32,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2048,
    )


def _random_checkpoint(config: LlamaConfig, folder: Path) -> int:
    """Write a random model of that config, one piece of a tensor at a time; return its bytes."""
    folder.mkdir()
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    planned = {
        name: Planned(tuple(parameter.shape), torch.bfloat16)
        for name, parameter in model.named_parameters()
    }
    files = weight_files(planned, SHARD_BYTES)
    writer = ShardedWriter(folder, files, planned)
    generator = torch.Generator().manual_seed(0)
    for name, item in planned.items():
        for first in range(0, item.shape[0], CHUNK_ROWS):
            shape = (min(CHUNK_ROWS, item.shape[0] - first), *item.shape[1:])
            values = torch.randn(shape, generator=generator, dtype=torch.float32).mul_(0.02)
            writer.write_rows(name, first, (values + float("norm" in name)).to(torch.bfloat16))
    writer.finish()
    write_index(files, planned, folder)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    for path in (demo_folder() / "model").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _options(tokens: int) -> list[str]:
    return [
        f"--pruning-ratio={RATIO}",
        f"--criterion={CRITERION}",
        f"--scope={SCOPE}",
        f"--memory-budget={BUDGET}",
        "--precisions=nf4,int8,bf16",
        f"--calibration-tokens={tokens}",
        "--device=cpu",
        "--json",
    ]


def _compress(model: Path, out: Path, options: list[str]) -> tuple[float, Mapping[str, Any]]:
    """Run the command in a process of its own; return its wall time and its document."""
    started = perf_counter()
    words = [sys.executable, "-m", "qpruner_core", "compress", str(model), f"--out={out}"]
    done = subprocess.run([*words, *options], stdout=subprocess.PIPE, check=True)  # noqa: S603
    return perf_counter() - started, json.loads(done.stdout)


def _libraries() -> int:
    """Return the resident memory of a process that imported what the command imports."""
    code = (
        "import qpruner_core.pipeline.streaming, bitsandbytes\n"
        "from transformers import LlamaForCausalLM\n"
        "from qpruner_core.models.host_memory import peak_resident_bytes\n"
        "print(peak_resident_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)  # noqa: S603
    return int(done.stdout)


def _missed_ratio(found: Mapping[str, Any], config: LlamaConfig) -> float:
    outside = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    layers = found["parameters_before"] - outside
    return abs((found["parameters_before"] - found["parameters_after"]) / layers - RATIO)


def _files_that_differ(place: Path) -> int:
    """Compress the demo model both ways; return how many files of weights, config, code and
    tokenizer differ.
    """
    spec = RunSpec(
        model=ModelSpec(source="demo"),
        data=DataSpec(calibration_tokens=2048),
        importance=ImportanceSpec(criteria=(CRITERION,)),
        pruning=PruningSpec(ratio=RATIO, criterion=CRITERION, scope=SCOPE),
    )
    # The last of two options counts.
    options = [*_options(2048), "--memory-budget=0.3", "--quiet"]
    _, found = _compress(Path("demo"), place / "streamed", options)
    _in_memory(spec, PrecisionPlan(precisions=found["plan"]), place / "memory")
    names = {path.name for way in ("streamed", "memory") for path in (place / way).iterdir()}
    # Card and manifest say which way was gone.
    compared = names - {"README.md", "qpruner.json"}
    return sum(
        _content(place / "streamed" / n) != _content(place / "memory" / n) for n in compared
    )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _in_memory(spec: RunSpec, plan: PrecisionPlan, folder: Path) -> None:
    loaded = load(spec.model, pick_device("cpu"))
    ids = load_corpus(replace(spec.data, tasks="none"), loaded.tokenizer).calibration
    found = score(loaded.model, loaded.layout, ids, spec.importance)
    chosen = select(loaded.layout, found.unit_scores[CRITERION], spec.pruning)
    prune_(loaded.model, loaded.layout, chosen.plan)
    pack_(loaded.model, chosen.layout, plan, torch.float32)
    facts = ExportFacts(card=loaded.card, layout=chosen.layout, pruning=chosen.plan, plan=plan)
    EXPORTERS.target("hf_mixed").export(loaded.model, loaded.tokenizer, facts, folder)


def _row(what: str, value: float, unit: str = "bytes") -> dict[str, form.Cell]:
    shown = f"{value / MB:,.0f} MB" if unit == "bytes" else ""
    return {"what": what, "value": value, "unit": unit, "shown": shown}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", help="where the checkpoint is made; the system's default")
    parser.add_argument("--tokens", type=int, default=2048, help="calibration tokens (2048)")


if __name__ == "__main__":
    sys.exit(form.main(measure, "Memory to compress a model layer by layer.", _arguments))
