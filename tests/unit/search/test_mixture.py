"""Our mixtures are Optuna's, however they came to be."""

from typing import Any

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
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator

from tests.unit.search.stock import PARAMETERS, stable_stock
from tuner_service.search.samplers.tpe.mixture import Mixture, log_sum_exp, trial_weights
from tuner_service.search.samplers.uniform import at

__all__ = ["stable_stock"]

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-1, 3),
    "log": FloatDistribution(1e-5, 0.1, log=True),
    "step": FloatDistribution(0, 1, step=0.1),
    "int": IntDistribution(1, 20),
    "int_step": IntDistribution(0, 60, step=5),
    "int_log": IntDistribution(32, 512, log=True),
    "wide": IntDistribution(0, 100_000),
    "choice": CategoricalDistribution(("a", None, 3)),
}

SPACES: list[tuple[str, ...]] = [
    *((name,) for name in DISTRIBUTIONS),
    ("float", "log", "choice", "int_log"),
    tuple(sorted(DISTRIBUTIONS)),
]


def space_of(names: tuple[str, ...]) -> dict[str, BaseDistribution]:
    return {name: DISTRIBUTIONS[name] for name in names}


def random_vectors(
    space: dict[str, BaseDistribution], count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return [count, D] values, a third of them crowded into one corner."""
    places = rng.random((count, len(space)))
    places[: count // 3] *= 0.05
    return np.array(
        [
            [
                distribution.to_internal_repr(at(distribution, float(place)))
                for distribution, place in zip(space.values(), row, strict=True)
            ]
            for row in places
        ]
    ).reshape(count, len(space))


def reference(space: dict[str, BaseDistribution], vectors: np.ndarray) -> _ParzenEstimator:
    columns = {name: vectors[:, i] for i, name in enumerate(space)}
    return _ParzenEstimator(columns, space, PARAMETERS)


def mixture(space: dict[str, BaseDistribution], vectors: np.ndarray) -> Mixture:
    built = Mixture(space)
    for key, vector in enumerate(vectors):
        built.put(key, tuple(vector))
    return built


@pytest.mark.usefixtures("stable_stock")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 24, 25, 26, 97, 98, 99, 400])
@pytest.mark.parametrize("names", SPACES, ids="-".join)
def test_draws_and_log_densities_are_optunas(names: tuple[str, ...], count: int) -> None:
    space = space_of(names)
    vectors = random_vectors(space, count, np.random.default_rng(count))
    stock, own = reference(space, vectors), mixture(space, vectors)
    drawn = stock.sample(np.random.RandomState(7), 24)
    candidates = np.array([drawn[name] for name in space]).T
    np.testing.assert_allclose(
        own.sample(np.random.RandomState(7), 24), candidates, rtol=1e-12, atol=1e-14
    )
    # Over 1e5 integers Optuna's differences of Φ lose five digits; ours are the exact ones.
    bound = 1e-10 if "wide" in space else 1e-12
    np.testing.assert_allclose(
        own.log_density(candidates), stock.log_pdf(drawn), rtol=bound, atol=bound
    )


@pytest.mark.usefixtures("stable_stock")
@pytest.mark.parametrize("name", ["float", "log", "int"])
def test_values_outside_the_range_are_kernels_too(name: str) -> None:
    # As in Optuna, when a parameter's range changed between trials.
    space = space_of((name,))
    vectors = random_vectors(space, 40, np.random.default_rng(0))
    vectors[::3] *= 40
    stock, own = reference(space, vectors), mixture(space, vectors)
    drawn = stock.sample(np.random.RandomState(3), 24)
    candidates = drawn[name][:, np.newaxis]
    found = own.sample(np.random.RandomState(3), 24)
    np.testing.assert_allclose(found, candidates, rtol=1e-9)
    expected = stock.log_pdf(drawn)
    finite = np.isfinite(expected)  # Optuna's draws may lie an ulp outside
    np.testing.assert_allclose(own.log_density(candidates)[finite], expected[finite], rtol=1e-9)


def changes(most: int) -> st.SearchStrategy[list[tuple[bool, int, int]]]:
    """Puts and discards of trials with keys up to `most`, with a seed for the values put."""
    return st.lists(
        st.tuples(st.booleans(), st.integers(0, most), st.integers(0, 2**32 - 1)), max_size=120
    )


@pytest.mark.parametrize("start", [3, 160])
@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 60))
def test_a_mixture_kept_up_to_date_is_the_one_built_anew(
    start: int, data: st.DataObject, every: int
) -> None:
    space = space_of(("choice", "float", "int", "int_log", "log"))
    vectors = dict(enumerate(random_vectors(space, start, np.random.default_rng(1))))
    kept = mixture(space, np.array(list(vectors.values())))
    candidates = random_vectors(space, 5, np.random.default_rng(2))
    kept.log_density(candidates)
    for turn, (puts, key, seed) in enumerate(data.draw(changes(start + start // 2))):
        kept.discard(key)
        vectors.pop(key, None)
        if puts:
            (vectors[key],) = random_vectors(space, 1, np.random.default_rng(seed))
            kept.put(key, tuple(vectors[key]))
        if turn % every == 0:
            _assert_same(kept, space, vectors, candidates)
    _assert_same(kept, space, vectors, candidates)


def _assert_same(
    kept: Mixture, space: dict[str, BaseDistribution], vectors: dict[int, Any], candidates: Any
) -> None:
    anew = mixture(space, np.array([vectors[key] for key in sorted(vectors)]))
    assert len(kept) == len(vectors)
    np.testing.assert_array_equal(kept.log_density(candidates), anew.log_density(candidates))
    np.testing.assert_array_equal(
        kept.sample(np.random.RandomState(0), 9), anew.sample(np.random.RandomState(0), 9)
    )


def test_the_shortcut_in_the_sum_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(24, 5000)) * 60 - 1e4
    expected = np.logaddexp.reduce(terms, axis=1)
    np.testing.assert_allclose(log_sum_exp(terms.copy()), expected, rtol=1e-14)


def test_weights_ramp_up_to_the_last_25() -> None:
    assert trial_weights(24).tolist() == [1.0] * 24
    weights = trial_weights(100)
    assert weights[0] == 0.01
    assert weights[74:].tolist() == [1.0] * 26
    assert (np.diff(weights) >= 0).all()
