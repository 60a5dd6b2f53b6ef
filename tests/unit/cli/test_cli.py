"""The command line as a script sees it: exit codes, stdout, stderr."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from qpruner_core.cli import main
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.specs import run_spec
from qpruner_core.domain.record import STEPS
from qpruner_core.store.records import RunStore


@pytest.fixture
def tiny_config(tiny_config: LlamaConfig) -> LlamaConfig:
    """Heads of 32, so that a KV head with its two query heads is one block of 64 columns."""
    tiny_config.head_dim = 32
    return tiny_config


@pytest.fixture
def line(tiny_folder, tiny_data, tmp_path):
    """Arguments of a short run on a random model."""
    texts = ("calibration", "training", "heldout", "tasks")
    given = [word for name in texts for word in (f"--{name}", getattr(tiny_data, name))]
    return [
        "run",
        f"--home={tmp_path / 'home'}",
        f"--model={tiny_folder}",
        *given,
        *shlex.split("--sequence-length 16 --calibration-tokens 256 --heldout-tokens 256"),
        *shlex.split("--items-per-task 4 --criteria magnitude --criterion magnitude"),
        *shlex.split(
            "--pruning-ratio 0.25 --scope per-layer --protect-first 0 --protect-last 1 "
            "--memory-budget 0.9"
        ),
        *shlex.split("--trials 2 --strategy random --recovery-steps 2 --lora-rank 2"),
    ]


def document(capsys) -> dict:
    said = capsys.readouterr()
    return json.loads(said.out)


def test_run_prints_one_document_with_every_key_and_the_export_lies_where_it_was_asked(
    line, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main([*line, "--out", str(out), "--json"]) == 0
    found = document(capsys)
    assert {"run_id", "model", "pruning", "baselines", "trials", "front", "chosen"} < set(found)
    assert found["pruning"]["parameters_after"] < found["pruning"]["parameters_before"]
    numbers = {trial["number"] for trial in found["trials"] + found["baselines"]}
    assert set(found["front"]) <= numbers
    assert found["chosen"] in numbers
    assert {"plan", "loss", "accuracy", "weight_bytes"} < set(found["trials"][0])
    assert found["export"]["path"] == str(out)
    assert found["export"]["reload_logits_equal"] is True
    assert found["export"]["bytes"] == sum(f.stat().st_size for f in out.glob("*.safetensors"))
    assert set(found["seconds"]) == set(STEPS)


def test_an_output_folder_that_exists_is_refused_before_anything_is_computed(
    line, tmp_path, capsys
):
    (tmp_path / "out").mkdir()
    assert main([*line, "--out", str(tmp_path / "out"), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "exists already" in said.err
    assert not (tmp_path / "home" / "runs").exists()


def test_a_budget_no_plan_reaches_names_the_smallest_and_leaves_no_finished_run(
    line, tmp_path, capsys
):
    home = f"--home={tmp_path / 'home'}"
    assert main([*line, "--memory-budget", "0.01", "--json"]) == 2
    said = capsys.readouterr()
    assert "smallest" in said.err
    assert said.err.count("\n") == 1
    assert main(["runs", home, "--json"]) == 0
    assert all(run["next_step"] is not None for run in document(capsys))


def test_a_step_command_goes_on_with_a_run(line, tmp_path, capsys):
    home = f"--home={tmp_path / 'home'}"
    spec = run_spec(build_parser().parse_args(line))
    run_id = RunStore(tmp_path / "home").create(spec).run_id
    assert main(["search", run_id, home, "--trials", "1", "--quiet", "--json"]) == 0
    assert len(document(capsys)["trials"]) == 1
    assert main(["evaluate", run_id, home, "--quiet", "--json"]) == 0
    said = capsys.readouterr()
    assert "emptied, as it belongs to the old result: search" in said.err
    assert "trials" not in json.loads(said.out)
    assert main(["search", run_id, home, "--trials", "3", "--json"]) == 0
    assert len(document(capsys)["trials"]) == 3
    compared = ["compare", run_id, home, "--ratio=0.2", "--compensation=bias", "--quiet"]
    assert main([*compared, "--json"]) == 0
    found = document(capsys)
    assert found["ratio"] == 0.2
    rows = {(row["criterion"], row["compensation"]) for row in found["rows"]}
    assert rows == {("magnitude", "none"), ("magnitude", "bias")}
    assert main(compared) == 0
    assert "magnitude         bias" in capsys.readouterr().out
    out = str(tmp_path / "plain")
    assert main(["export", run_id, home, "--format=hf_16bit", "--out", out, "--json"]) == 0
    found = document(capsys)
    assert found["export"]["reload_logits_equal"] is True
    assert main(["runs", run_id, home]) == 0
    assert "reloaded: same logits" in capsys.readouterr().out
    assert main(["runs", run_id, home, "--delete", "--json"]) == 0
    assert document(capsys) == {"deleted": run_id}
    assert main(["runs", run_id, home]) == 2


def test_inspect_answers_from_the_headers_without_torch(tiny_folder):
    code = (
        "import sys; from qpruner_core.cli import main;"
        f"code = main(['inspect', {str(tiny_folder)!r}, '--json']);"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["0", "False"]
    found = json.loads(done.stdout)
    assert found["architecture"] == "llama"
    assert found["estimated_bytes"]["nf4"] < found["estimated_bytes"]["bf16"]


def test_inspect_speaks_to_people_too(tiny_folder, capsys):
    assert main(["inspect", str(tiny_folder)]) == 0
    said = capsys.readouterr().out
    assert "Estimated weight memory" in said
    assert "KiB" in said


def test_a_model_that_is_not_there_gets_a_sentence(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip().endswith(".")
    assert "Traceback" not in said.err


def test_an_unknown_run_gets_a_sentence(tmp_path, capsys):
    assert main(["export", "20260101-000000-none-0000", f"--home={tmp_path}"]) == 2
    assert "There is no run" in capsys.readouterr().err


def test_no_runs_yet_says_how_to_start(tmp_path: Path, capsys):
    assert main(["runs", f"--home={tmp_path}"]) == 0
    assert "qpruner run" in capsys.readouterr().out


def test_doctor_finds_everything_on_a_machine_that_runs_the_tests(tmp_path, capsys):
    assert main(["doctor", f"--home={tmp_path}", "--json"]) == 0
    names = {finding["name"] for finding in document(capsys)["findings"] if finding["ok"]}
    assert {"Python", "torch", "device", "home folder", "demo model"} <= names


def test_a_bug_of_ours_keeps_its_traceback_and_exits_with_one(tmp_path):
    code = (
        "import sys, qpruner_core.cli as cli;"
        "cli.run_command = lambda parsed: 1 / 0;"
        "sys.exit(cli.main(['runs']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    "given", [["run", "--pruning-ratio", "abc"], ["run", "--criterion", "foo"], ["dance"]]
)
def test_an_argument_that_cannot_be_read_gets_one_sentence(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(given)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert given[-1] in said.err
