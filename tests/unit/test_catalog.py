import inspect
import subprocess
import sys
from dataclasses import replace

import pytest

from qpruner_core import catalog
from qpruner_core.domain.spec import (
    ExportSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.errors import BadInputError, UnknownNameError

REGISTRIES = (
    catalog.CRITERIA,
    catalog.ARCHITECTURES,
    catalog.PRECISIONS,
    catalog.STRATEGIES,
    catalog.EXPORTERS,
)
ENTRIES = [(registry, entry.name) for registry in REGISTRIES for entry in registry]
SPEC = RunSpec(model=ModelSpec(source="demo"))


@pytest.mark.parametrize(("registry", "name"), ENTRIES, ids=[name for _, name in ENTRIES])
def test_every_target_can_be_imported(registry, name):
    assert registry.target(name) is not None


@pytest.mark.parametrize(
    ("registry", "name"),
    [pair for pair in ENTRIES if pair[0] in (catalog.CRITERIA, catalog.STRATEGIES)],
)
def test_options_in_the_catalogue_equal_the_constructors(registry, name):
    parameters = inspect.signature(registry.target(name)).parameters
    for option in registry.entry(name).options:
        assert parameters[option.name].default == option.default


@pytest.mark.parametrize(
    ("registry", "name"), [pair for pair in ENTRIES if pair[0].kind != "architecture"]
)
def test_every_summary_is_a_sentence(registry, name):
    assert registry.entry(name).summary.endswith(".")


def test_the_catalogue_is_read_without_torch():
    code = "import sys, qpruner_core.catalog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_spec_of_defaults_passes():
    assert catalog.check_spec(SPEC) is None


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, importance=ImportanceSpec(criteria=("tailor",))),
        replace(SPEC, pruning=PruningSpec(criterion="tailor")),
        replace(SPEC, search=SearchSpec(precisions=("nf5",))),
        replace(SPEC, search=SearchSpec(strategy="tpee")),
        replace(SPEC, export=ExportSpec(format="hf_mix")),
    ],
)
def test_an_unknown_name_in_a_spec_is_refused_before_anything_is_computed(spec):
    with pytest.raises(UnknownNameError, match="Did you mean"):
        catalog.check_spec(spec)


def test_a_layer_signal_cannot_prune_units():
    spec = replace(SPEC, pruning=PruningSpec(criterion="block_influence"))
    with pytest.raises(BadInputError, match="scores whole layers"):
        catalog.check_spec(spec)
