"""Every search strategy passes the suite Optuna ships for samplers, and keeps our own laws."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from qpruner_core.catalog import STRATEGIES

NAMES = STRATEGIES.names()
SPACE = {f"layer.{i}": IntDistribution(0, 2) for i in range(4)}


def _make(name: str, seed: int = 0) -> BaseSampler:
    return STRATEGIES.target(name)(seed=seed, **STRATEGIES.options(name, {}))


def _run(name: str, seed: int, n_trials: int) -> list[dict[str, int]]:
    """Ask and tell a sampler on two objectives and a constraint; return what it asked for."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=_make(name, seed))
    for _ in range(n_trials):
        trial = study.ask(SPACE)
        used = float(sum(trial.params.values()))
        trial.set_constraint("memory", used - 5.0)
        study.tell(trial, [sum((2 - v) ** 2 for v in trial.params.values()), used])
    return [trial.params for trial in study.trials]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class TestConformance(BasicSamplerTestCase):
    """Optuna's own laws; the seeded variant of a sampler is the same sampler."""

    @pytest.fixture(params=[name for name in NAMES if not STRATEGIES.entry(name).facts["seeded"]])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return functools.partial(_make, request.param)


@pytest.mark.parametrize("name", NAMES)
def test_options_in_the_catalogue_equal_those_of_the_constructor(name):
    parameters = dict(inspect.signature(STRATEGIES.target(name)).parameters)
    assert parameters.pop("seed").default is inspect.Parameter.empty
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert defaults == STRATEGIES.options(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_an_optuna_sampler_and_says_whether_it_is_seeded(name):
    assert isinstance(_make(name), BaseSampler)
    assert STRATEGIES.entry(name).facts["seeded"] in (True, False)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_trials_under_two_objectives_and_a_constraint(name):
    assert _run(name, 3, 13) == _run(name, 3, 13)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_trials(name):
    assert _run(name, 1, 6) != _run(name, 2, 6)


@pytest.mark.parametrize("name", NAMES)
def test_every_asked_value_lies_in_the_space_as_a_whole_number(name):
    for params in _run(name, 0, 12):
        assert params.keys() == SPACE.keys()
        assert all(isinstance(value, int) and 0 <= value <= 2 for value in params.values())
