"""The samplers and pruners."""

from typing import Any

from tuner_service.definition.catalogue.entries import PrunerEntry, SamplerEntry, by_name
from tuner_service.definition.options import Option

_METHOD_SEED = Option(
    name="seed",
    type="int",
    default=0,
    low=0,
    high=2**31 - 1,
    searchable=False,
    description="Seeds the search: each draw's generator comes from it and the trial's place.",
)


def _count(name: str, default: int, low: int, description: str) -> Option:
    return Option(
        name=name,
        type="int",
        default=default,
        low=low,
        high=100_000,
        searchable=False,
        description=description,
    )


def _number(name: str, low: float | None, high: float | None, **more: Any) -> Option:
    return Option(name=name, type="float", low=low, high=high, searchable=False, **more)


SAMPLERS = by_name(
    SamplerEntry(
        name="grid",
        description="Every point of the grid, exactly once.",
        fixed_at_submit=True,
        budget_from_grid=True,
    ),
    SamplerEntry(
        name="random",
        description="Independent draws, fixed at submit.",
        fixed_at_submit=True,
        options=(_METHOD_SEED,),
    ),
    SamplerEntry(
        name="qmc",
        description="A scrambled Sobol sequence, fixed at submit: draws that leave no gaps.",
        fixed_at_submit=True,
        draws="sobol",
        options=(_METHOD_SEED,),
    ),
    SamplerEntry(
        name="tpe",
        description="Tree-structured Parzen estimator (Optuna's): Bayesian search.",
        default_parallel=32,  # at 32 at once half of its gain is gone
        parallel_share=8,
        options=(
            _METHOD_SEED,
            _count("startup_trials", 10, 0, "Random draws before the estimator takes over."),
            _count("candidates", 24, 1, "Candidates of which the most promising is taken."),
        ),
    ),
)

BROUGHT_SAMPLER = SamplerEntry(
    name="a sampler of the workers",
    description="From a package that is installed beside the workers.",
    default_parallel=32,  # as of the one here that learns
    parallel_share=8,
)

_WARMUP = _count("warmup_steps", 0, 0, "Earlier epochs are not looked at.")
_INTERVAL = _count("interval_steps", 1, 1, "Epochs between two decisions.")
_BOOTSTRAP = _count(
    "bootstrap_count", 0, 0, "The first so many trials to reach a decision end there."
)

_PRUNER_OPTIONS = (
    _count("startup_trials", 5, 0, "Finished trials before any trial is pruned."),
    _WARMUP,
    _INTERVAL,
    _count("min_trials", 1, 1, "Reports of other trials that a decision at an epoch needs."),
)

PRUNERS = by_name(
    PrunerEntry(name="none", description="Every trial runs to its end.", prunes=False),
    PrunerEntry(
        name="median",
        description="Stops a trial whose best value so far is worse than the median of the "
        "others at the same epoch.",
        options=_PRUNER_OPTIONS,
    ),
    PrunerEntry(
        name="percentile",
        description="Stops a trial whose best value so far is not among the best `percentile` "
        "per cent of the others at the same epoch.",
        options=(
            _number("percentile", 0, 100, default=25.0, description="Share to keep, per cent."),
            *_PRUNER_OPTIONS,
        ),
    ),
    PrunerEntry(
        name="successive_halving",
        description="Asynchronous successive halving (ASHA): at epochs that grow by "
        "`reduction_factor`, only the best 1/`reduction_factor` go on.",
        options=(
            _count("min_resource", 1, 1, "Epochs before the first decision."),
            _count("reduction_factor", 4, 2, "One of so many goes on at each decision."),
            _count("min_early_stopping_rate", 0, 0, "The first so many decisions are left out."),
            _BOOTSTRAP,
        ),
    ),
    PrunerEntry(
        name="hyperband",
        description="Several brackets of successive halving, from eager to patient; each trial "
        "is in one.",
        options=(
            _count("min_resource", 1, 1, "Epochs before the eagerest bracket's first decision."),
            _count("reduction_factor", 3, 2, "One of so many goes on at each decision."),
            _BOOTSTRAP,
        ),
    ),
    PrunerEntry(
        name="patience",
        description="Stops a trial that has not become better for `patience` epochs.",
        options=(
            _count("patience", 5, 0, "Epochs without an improvement that are still allowed."),
            _number("min_delta", 0, None, default=0.0, description="What counts as improvement."),
        ),
    ),
    PrunerEntry(
        name="threshold",
        description="Stops a trial whose value leaves [lower, upper].",
        options=(
            _number("lower", None, None, also=(None,), description="Smallest value allowed."),
            _number("upper", None, None, also=(None,), description="Largest value allowed."),
            _WARMUP,
            _INTERVAL,
        ),
    ),
)

BROUGHT_PRUNER = PrunerEntry(
    name="a pruner of the workers",
    description="From a package that is installed beside the workers.",
)
