"""A default study against scikit-learn's MLP; `benchmarks/tables.py` does it in full."""

import io
import statistics

import numpy as np
import pandas as pd
import pytest

from benchmarks.tables import compared, studied
from tests.public_tables import PUBLIC_TABLES


@pytest.mark.parametrize("name", PUBLIC_TABLES)
def test_a_table_is_what_it_says(name: str) -> None:
    table = PUBLIC_TABLES[name]
    frame = table.frame(0)
    pd.testing.assert_frame_equal(frame, table.frame(0))
    assert not frame.equals(table.frame(1))
    assert len(frame) == table.rows
    shares = frame["part"].value_counts() / table.rows
    assert shares["train"] == pytest.approx(0.6, abs=0.05)
    assert not frame["target"].isna().any()
    if not table.is_regression:
        assert frame["target"].nunique() == 2
        share = frame["target"].value_counts(normalize=True)
        for part in ("train", "validation", "test"):
            targets = frame.loc[frame["part"] == part, "target"]
            found = (targets == share.idxmin()).mean()
            assert found == pytest.approx(share.min(), abs=1.5 / len(targets))
    gaps = frame.isna().to_numpy().any()
    assert gaps == (name in ("passengers", "houses", "incomes"))
    texts = frame.drop(columns=["target", "part"]).select_dtypes(exclude=np.number)
    assert len(texts.columns) > 0


@pytest.mark.parametrize("name", ["passengers", "houses"])
def test_a_default_study_is_not_worse_than_scikit_learns_mlp(name: str) -> None:
    table = PUBLIC_TABLES[name]
    frames = [pd.read_csv(io.StringIO(table.frame(s).to_csv(index=False))) for s in (0, 1)]
    ours = [studied(table, frame, seed, trials=8) for seed, frame in enumerate(frames)]
    theirs = [compared(table, frame, seed) for seed, frame in enumerate(frames)]
    # The spread of five seeds, as the benchmark has it: two of them tell too little of it.
    spread = {"passengers": 0.035, "houses": 0.016}[name]
    assert statistics.fmean(ours) > statistics.fmean(theirs) - spread
