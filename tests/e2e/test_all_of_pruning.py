"""The demo pruned by everything at once from the command line, searched, recovered, exported."""

import json
import shlex

import pytest

from qpruner_core.cli import main

pytestmark = pytest.mark.slow

ASKED = (
    "--criteria flap,block_influence --criterion flap --pruning-ratio 0.3 --scope balanced "
    "--compensation bias --pruning-iterations 2 --drop-layers 1 --calibration-tokens 2048 "
    "--heldout-tokens 2048 --items-per-task 4 --trials 3 --strategy random --recovery-steps 3 "
    "--device cpu --quiet --json"
)


def test_depth_rounds_balance_and_compensation_end_in_an_export_that_reloads(tmp_path, capsys):
    out = tmp_path / "out"
    given = ["run", f"--home={tmp_path / 'home'}", f"--out={out}", *shlex.split(ASKED)]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    pruned = found["pruning"]
    assert pruned["layers"] == 11
    assert len(pruned["dropped_layers"]) == 1
    assert pruned["biases"]
    assert pruned["units"]["mlp_channels"]["after"] < pruned["units"]["mlp_channels"]["before"]
    assert found["recovery"]["after"]["loss"] < found["recovery"]["before"]["loss"]
    assert found["export"]["reload_logits_equal"] is True
    assert found["export"]["max_logit_difference"] == 0.0
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 11
    assert len(config["qpruner_biases"]) == len(pruned["biases"])
