"""Truncated normals against Optuna's and, for cells, against integrals in high precision."""

import numpy as np
import pytest
from optuna.samplers._tpe import _truncnorm
from scipy.stats import norm

from tuner_service.search.samplers.tpe.gaussian import log_cell_mass, log_mass, quantile


def kernels(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b) of random kernels on [0, 1], some standing outside or on the ends."""
    rng = np.random.default_rng(0)
    mu = np.concatenate([rng.uniform(-0.3, 1.3, count), [0.0, 1.0]])
    sigma = np.concatenate([10 ** rng.uniform(-2, 0, count), [0.01, 0.01]])
    return -mu / sigma, (1 - mu) / sigma


def test_masses_are_optunas() -> None:
    a, b = kernels()
    expected = _truncnorm._log_gauss_mass(a, b)
    np.testing.assert_allclose(log_mass(a, b), expected, rtol=1e-12, atol=1e-15)


def test_quantiles_are_optunas_and_stay_inside() -> None:
    a, b = kernels()
    places = np.random.default_rng(1).random(len(a))
    places[:2] = 0.0, np.nextafter(1, 0)
    found = quantile(places, a, b)
    with np.errstate(divide="ignore"):
        expected = _truncnorm.ppf(places, a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert ((a <= found) & (found <= b)).all()


@pytest.mark.parametrize("width", [1e-4, 0.01, 0.049, 0.051, 0.5, 3.0])
@pytest.mark.parametrize("middle", [0.0, -0.3, 2.0, -4.0, 6.0])
def test_cells_are_integrals_of_the_density(middle: float, width: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    points = middle + 0.5 * width * nodes
    exact = np.log(np.sum(weights * norm.pdf(points)) * 0.5 * width)
    left, right = np.array([middle - 0.5 * width]), np.array([middle + 0.5 * width])
    found = log_cell_mass(left, right, np.array([0.0]), np.array([1.0]))
    assert found.item() == pytest.approx(exact, abs=5e-11)


def test_cells_far_away_weigh_nothing() -> None:
    left, right = np.array([60.0, 60.0]), np.array([60.01, 61.0])
    found = log_cell_mass(left, right, np.array([0.0, 60.0]), np.array([1.0, 1.0]))
    assert (found[:, 0] < -700).all()
    assert np.isfinite(found[:, 1]).all()
