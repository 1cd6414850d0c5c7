"""Optuna's TPE as the reference. Its widths of equal values depend on an unstable sort."""

from typing import Any

import numpy as np
import pytest
from optuna.samplers._tpe import parzen_estimator
from optuna.samplers._tpe.sampler import default_weights

PARAMETERS = parzen_estimator._ParzenEstimatorParameters(
    prior_weight=1.0,
    consider_magic_clip=True,
    consider_endpoints=False,
    weights=default_weights,
    multivariate=True,
)


class _StableNumpy:
    """NumPy whose `argsort` is stable: which of several equal values gets which width is chance."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def argsort(self, values: Any) -> Any:
        return np.argsort(values, kind="stable")


@pytest.fixture
def stable_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Optuna's estimator give equal values their widths in the trials' order, as ours does."""
    monkeypatch.setattr(parzen_estimator, "np", _StableNumpy())
