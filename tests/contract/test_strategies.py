"""Every search strategy passes the suite Optuna ships for samplers, and keeps our own laws."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from qpruner_core.catalog import STRATEGIES

NAMES = [name for name in STRATEGIES.names() if STRATEGIES.entry(name).facts["kind"] == "sampler"]
OURS = [name for name in STRATEGIES.names() if name not in NAMES]
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


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_options_in_the_catalogue_equal_those_of_the_constructor(name):
    parameters = dict(inspect.signature(STRATEGIES.target(name)).parameters)
    if name in NAMES:
        assert parameters.pop("seed").default is inspect.Parameter.empty
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert defaults == STRATEGIES.options(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_an_optuna_sampler_and_says_whether_it_is_seeded(name):
    assert isinstance(_make(name), BaseSampler)
    assert STRATEGIES.entry(name).facts["seeded"] in (True, False)


@pytest.mark.parametrize("name", OURS)
def test_a_strategy_of_our_own_proposes_the_same_for_the_same_situation(name):
    from qpruner_core.search.allocator import MeasuredCode, Situation
    from qpruner_core.search.space import SearchSpace

    space = SearchSpace(_layout(), ("nf4", "int8"), "layer")
    prior = np.linspace(0.1, 0.4, 8).reshape(4, 2)[:, ::-1].copy()
    ends = [(0, 0, 0, 0), (1, 1, 1, 1)]
    situation = Situation(
        space=space,
        prior=prior,
        sizes=np.array(space.unit_bytes),
        budget_bytes=space.largest_bytes - 1,
        measured=[
            MeasuredCode(code=c, badness=2.0 - sum(c), cost=float(space.code_bytes(c)))
            for c in ends
        ],
        pending=[],
        closed=frozenset(ends),
        n_trials=4,
        number=0,
        seed=7,
    )
    make = functools.partial(STRATEGIES.target(name), **STRATEGIES.options(name, {}))
    first = make().propose(situation)
    assert first == make().propose(situation)
    assert first not in situation.closed
    assert space.code_bytes(first) <= situation.budget_bytes


def _layout():
    from qpruner_core.models.architectures import llama

    return llama.layout(
        {
            "model_type": "llama",
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 128,
        }
    )


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
