"""Ray Tune's side of `benchmarks.ray_compare`: run by Ray's own Python, imports nothing of ours.

    RAY_PYTHON benchmarks/ray_side.py TRIALS

Prints the trials per second of an objective that does nothing but report ten times. Starting Ray
is not counted.
"""

import sys
import tempfile
import time

import ray
from ray import tune

REPORTS = 10


def objective(config: dict[str, float]) -> None:
    """Report ten times."""
    for step in range(1, REPORTS + 1):
        tune.report({"value": config["x"] * step})


def main() -> None:
    """Run the study and print its rate on the last line."""
    trials = int(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as directory:
        tuner = tune.Tuner(
            objective,
            param_space={"x": tune.uniform(0.0, 1.0)},
            tune_config=tune.TuneConfig(num_samples=trials, metric="value", mode="max"),
            run_config=tune.RunConfig(storage_path=directory, verbose=0),
        )
        start = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - start
    ray.shutdown()
    if len(results) != trials or results.num_errors:
        raise SystemExit(f"ray: {results.num_errors} of {len(results)} trials failed")
    print(trials / seconds)


if __name__ == "__main__":
    main()
