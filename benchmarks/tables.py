"""A default study against scikit-learn's MLP with a `ColumnTransformer`, on five tables.

    python -m benchmarks.tables [--seeds 0 1 2 3 4] [--trials 16] [TABLE ...]

Both see the same rows: they train on the training part and are scored on the test part; the study
chooses among its trials by the validation part, which scikit-learn's MLP, with its defaults, has no
use for and is given to train on. A study is worse where its mean over the seeds lies more than a
standard deviation below.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.public_tables import PUBLIC_TABLES, PublicTable
from tuner_service.definition import parse_definition, resolve, space_of
from tuner_service.search.samplers.uniform import draw
from workers.protocol.messages import Finished, RunId, TrialStart
from workers.training.engine.engine import Engine, EngineSettings
from workers.training.steps.native.library import cache_directory
from workers.training.steps.select import BackendSelector


def definition(table: PublicTable, seed: int, trials: int) -> dict[str, Any]:
    """Return the study that somebody writes who leaves everything at its default."""
    return {
        "name": "table",
        "dataset": {
            "name": "csv",
            "path": "t.csv",
            "target": "target",
            "task": "regression" if table.is_regression else "classification",
            "missing": "median",
            "split": {"part": "part"},
            **({"categorical": list(table.categorical)} if table.categorical else {}),
        },
        "network": {"type": "mlp"},
        "objective": {"metric": f"val_{table.metric}"},
        "parameters": {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "hidden_units": {"type": "categorical", "choices": [16, 32, 64, 128]},
            "hidden_layers": {"type": "int", "low": 1, "high": 2},
            "dropout": {"type": "float", "low": 0.0, "high": 0.5},
        },
        "sampler": {"type": "random", "seed": seed},
        "training": {"early_stopping": {"patience": 5}},
        "budget": {"trials": trials},
    }


def studied(table: PublicTable, frame: pd.DataFrame, seed: int, trials: int) -> float:
    """Return the best trial's score on the test part."""
    study = parse_definition(definition(table, seed, trials))
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(Path(folder) / "t.csv", index=False)
        steps = BackendSelector(torch.device("cpu"), cache=cache_directory())
        settings = EngineSettings(data_dirs=(Path(folder),), threads=1)
        engine = Engine("cpu", settings=settings, steps=steps)
        for number in range(trials):
            spec = resolve(study, draw(space_of(study), seed=seed, slot=number, fixed={}))
            engine.submit(
                TrialStart(
                    run=RunId(number), number=number, study=1, spec=spec.model_dump(mode="json"),
                    checkpoint=str(Path(folder) / str(number)), resume=None, model=None,
                    keep_models=0, prunable=False, exclusive=False, log=None,
                )
            )  # fmt: skip
        events: list[Any] = []
        while not engine.idle:
            events += engine.advance()
    ended = [event for event in events if isinstance(event, Finished)]
    best = max(ended, key=lambda event: event.values[0])
    return float(best.record[f"test_{table.metric}"])


def compared(table: PublicTable, frame: pd.DataFrame, seed: int) -> float:
    """Return the score of scikit-learn's MLP on the test part."""
    inputs = frame.drop(columns=["target", "part"])
    texts = [
        name for name in inputs if not pd.api.types.is_numeric_dtype(inputs[name].infer_objects())
    ]
    texts = list(dict.fromkeys([*texts, *table.categorical]))
    columns = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
                [name for name in inputs if name not in texts],
            ),
            (
                "texts",
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
                ),
                texts,
            ),
        ]
    )
    kind = MLPRegressor if table.is_regression else MLPClassifier
    network = kind(random_state=seed)
    if table.is_regression:  # with the target as it is, R² of house prices is -7.6
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
    model = make_pipeline(columns, network)
    known = frame["part"] != "test"
    x, y = inputs[~known], frame.loc[~known, "target"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs[known], frame.loc[known, "target"])
    if table.metric == "r2":
        return float(r2_score(y, model.predict(x)))
    if table.metric == "accuracy":
        return float(accuracy_score(y, model.predict(x)))
    return float(roc_auc_score(y == model.classes_[1], model.predict_proba(x)[:, 1]))


def main() -> None:
    """Print both sides' mean and standard deviation for each table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help=", ".join(PUBLIC_TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=16)
    given = parser.parse_args()
    for name in given.tables or PUBLIC_TABLES:
        table = PUBLIC_TABLES[name]
        ours, theirs, spent = [], [], [0.0, 0.0]
        for seed in given.seeds:
            frame = pd.read_csv(_text(table.frame(seed)))
            begun = time.monotonic()
            ours.append(studied(table, frame, seed, given.trials))
            between = time.monotonic()
            theirs.append(compared(table, frame, seed))
            spent[0] += between - begun
            spent[1] += time.monotonic() - between
            sys.stdout.write(f"  {name}, seed {seed}: {ours[-1]:.4f} {theirs[-1]:.4f}\n")
            sys.stdout.flush()
        _print(name, table.metric, ours, theirs, spent)


def _text(frame: pd.DataFrame) -> Any:
    return io.StringIO(frame.to_csv(index=False))


def _print(name: str, metric: str, ours: Any, theirs: Any, spent: Any) -> None:
    means = [statistics.fmean(scores) for scores in (ours, theirs)]
    spreads = [statistics.stdev(scores) if scores[1:] else 0.0 for scores in (ours, theirs)]
    verdict = "worse" if means[0] < means[1] - spreads[1] else "not worse"
    sys.stdout.write(
        f"{name:12} {metric:9} study {means[0]:.4f} ± {spreads[0]:.4f} ({spent[0]:.0f} s)   "
        f"scikit-learn {means[1]:.4f} ± {spreads[1]:.4f} ({spent[1]:.0f} s)   {verdict}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
