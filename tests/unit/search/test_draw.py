"""Draws depend on (seed, slot) alone, lie in the domain, and are uniform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import chisquare, kstest

from tests.unit.definition.spaces import spaces
from tests.unit.search.builders import choice, floats, ints, space
from tuner_service.definition.space import Parameter, Space, contains
from tuner_service.search.distributions import distribution_of, distributions
from tuner_service.search.samplers.uniform import at, draw

SEEDS = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        (floats(0, 1), FloatDistribution(0, 1)),
        (floats(1e-4, 1, log=True), FloatDistribution(1e-4, 1, log=True)),
        (floats(0, 1, step=0.25), FloatDistribution(0, 1, step=0.25)),
        (ints(1, 9), IntDistribution(1, 9)),
        (ints(1, 9, step=4), IntDistribution(1, 9, step=4)),
        (ints(1, 9, log=True), IntDistribution(1, 9, log=True)),
        (choice("a", None, 2, True), CategoricalDistribution(("a", None, 2, True))),
    ],
)
def test_parameters_become_optunas_distributions(
    parameter: Parameter, distribution: BaseDistribution
) -> None:
    assert distribution_of(parameter) == distribution


def test_distributions_keep_the_spaces_order() -> None:
    ours = space(b=ints(1, 2, when={"a": (1,)}), a=ints(0, 1))
    assert list(distributions(ours)) == ["a", "b"]


@settings(max_examples=200, deadline=None)
@given(spaces(), SEEDS, SEEDS)
def test_a_draw_has_what_applies_and_lies_in_the_domain(ours: Space, seed: int, slot: int) -> None:
    params = draw(ours, seed=seed, slot=slot)
    assert params == draw(ours, seed=seed, slot=slot)
    assert params.keys() == ours.active(params)
    for name, parameter in ours.parameters:
        assert name not in params or contains(parameter, params[name])


@pytest.mark.parametrize("block", [0, 3])
def test_even_draws_cover_each_parameters_range_block_by_block(block: int) -> None:
    ours = space(x=floats(0, 1), n=ints(0, 7), c=choice("a", "b"))
    drawn = [draw(ours, seed=5, slot=16 * block + i, draws="even") for i in range(16)]
    assert sorted(int(16 * params["x"]) for params in drawn) == list(range(16))
    assert sorted(params["n"] for params in drawn) == sorted([*range(8)] * 2)
    assert [params["c"] for params in drawn].count("a") == 8


def test_even_draws_depend_on_seed_and_slot_and_keep_fixed_values() -> None:
    ours = space(x=floats(0, 1), y=floats(0, 1))
    drawn = {
        (params["x"], params["y"])
        for seed in range(5)
        for slot in range(40)
        for params in [draw(ours, seed=seed, slot=slot, draws="even") for _ in range(2)]
    }
    assert len(drawn) == 200
    assert draw(ours, seed=1, slot=7, fixed={"y": 0.5}, draws="even")["y"] == 0.5


def test_a_sobol_sequence_leaves_no_gaps_in_two_parameters_at_once() -> None:
    ours = space(x=floats(0, 1), y=floats(0, 1))
    drawn = [draw(ours, seed=3, slot=slot, draws="sobol") for slot in range(64)]
    assert len({(int(8 * params["x"]), int(8 * params["y"])) for params in drawn}) == 64
    assert drawn[5] == draw(ours, seed=3, slot=5, draws="sobol")
    assert drawn[5] != draw(ours, seed=4, slot=5, draws="sobol")


def test_a_sobol_sequence_goes_on_after_its_first_block() -> None:
    ours = space(x=floats(0, 1), y=floats(0, 1))
    slots = range(16_384 - 8, 16_384 + 8)
    drawn = [draw(ours, seed=3, slot=slot, draws="sobol") for slot in slots]
    assert len({params["x"] for params in drawn}) == 16
    assert sorted(int(8 * params["x"]) for params in drawn[8:]) == list(range(8))


def test_slots_and_seeds_differ() -> None:
    ours = space(x=floats(0, 1))
    drawn = {draw(ours, seed=seed, slot=slot)["x"] for seed in range(20) for slot in range(20)}
    assert len(drawn) == 400


def test_fixed_values_stand_and_leave_the_others_as_they_were() -> None:
    ours = space(
        a=choice("on", "off"), b=floats(0, 1, when={"a": ("on",)}), c=floats(0, 1), d=ints(1, 9)
    )
    free = draw(ours, seed=1, slot=7)
    other = "off" if free["a"] == "on" else "on"
    fixed = draw(ours, seed=1, slot=7, fixed={"a": other, "d": 5})
    assert fixed["a"] == other
    assert fixed["d"] == 5
    assert ("b" in fixed) != ("b" in free)
    assert fixed["c"] == free["c"]


@pytest.mark.parametrize(
    ("distribution", "share_below"),
    [
        (FloatDistribution(-2, 6), lambda x: (x + 2) / 8),
        (FloatDistribution(1e-4, 1, log=True), lambda x: np.log(x / 1e-4) / np.log(1e4)),
    ],
)
def test_continuous_draws_are_uniform(distribution: BaseDistribution, share_below: object) -> None:
    places = np.random.default_rng(0).random(20_000)
    values = [at(distribution, float(place)) for place in places]
    assert kstest(values, share_below).pvalue > 1e-3


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (IntDistribution(3, 7), {k: 1 for k in range(3, 8)}),
        (IntDistribution(0, 6, step=3), {0: 1, 3: 1, 6: 1}),
        (FloatDistribution(0, 1, step=0.25), {0.25 * k: 1 for k in range(5)}),
        (CategoricalDistribution(("a", None)), {"a": 1, None: 1}),
        (
            IntDistribution(1, 4, log=True),
            {k: np.log((k + 0.5) / (k - 0.5)) for k in range(1, 5)},
        ),
    ],
)
def test_discrete_draws_have_their_shares(
    distribution: BaseDistribution, expected: dict[object, float]
) -> None:
    places = np.random.default_rng(0).random(20_000)
    values = [at(distribution, float(place)) for place in places]
    counts = [values.count(value) for value in expected]
    assert sum(counts) == len(values)
    shares = np.array(list(expected.values())) / sum(expected.values())
    assert chisquare(counts, shares * len(values)).pvalue > 1e-3
