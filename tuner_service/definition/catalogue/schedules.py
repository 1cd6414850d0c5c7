"""The built-in learning-rate schedules."""

from tuner_service.definition.catalogue.entries import Schedule, by_name
from tuner_service.definition.options import Option

_WARMUP = Option(
    name="warmup_epochs",
    type="int",
    default=0,
    low=0,
    high=100_000,
    fusible=True,
    description="The rate rises linearly over this many epochs, step by step, then follows the "
    "schedule, which starts after them.",
)

_MIN_FACTOR = Option(
    name="min_factor",
    type="float",
    default=0.0,
    low=0.0,
    high=1.0,
    fusible=True,
    description="The lowest rate, as a share of learning_rate.",
)


def _gamma(default: float) -> Option:
    return Option(
        name="gamma",
        type="float",
        default=default,
        low=0.0,
        low_open=True,
        high=1.0,
        fusible=True,
        description="Factor of each decay.",
    )


SCHEDULES = by_name(
    Schedule(
        name="constant",
        description="The same rate throughout.",
        options=(_WARMUP,),
    ),
    Schedule(
        name="step",
        description="The rate is multiplied by `gamma` every `step_size` epochs.",
        options=(
            Option(
                name="step_size",
                type="int",
                default=10,
                low=1,
                high=100_000,
                fusible=True,
                description="Epochs between two decays.",
            ),
            _gamma(0.1),
            _WARMUP,
        ),
    ),
    Schedule(
        name="exponential",
        description="The rate is multiplied by `gamma` after every epoch.",
        options=(_gamma(0.95), _WARMUP),
    ),
    Schedule(
        name="inverse_time",
        description="learning_rate / (1 + decay_rate × epoch), with epochs counted from 0.",
        options=(
            Option(
                name="decay_rate",
                type="float",
                default=0.1,
                low=0.0,
                fusible=True,
                description="How fast the rate falls.",
            ),
            _WARMUP,
        ),
    ),
    Schedule(
        name="cosine",
        description="Half a cosine, step by step, from the rate to `min_factor` times it at the "
        "last epoch's end.",
        options=(
            _MIN_FACTOR,
            _WARMUP,
        ),
    ),
    Schedule(
        name="one_cycle",
        description="Up from learning_rate / div_factor to learning_rate and down again, by "
        "cosines, step by step (torch's OneCycleLR without its momentum cycle).",
        options=(
            Option(
                name="pct_start",
                type="float",
                default=0.3,
                low=0.0,
                low_open=True,
                high=1.0,
                high_open=True,
                fusible=True,
                description="Share of the steps in which the rate rises.",
            ),
            Option(
                name="div_factor",
                type="float",
                default=25.0,
                low=1.0,
                fusible=True,
                description="learning_rate over the first rate.",
            ),
            Option(
                name="final_div_factor",
                type="float",
                default=10_000.0,
                low=1.0,
                fusible=True,
                description="The first rate over the last.",
            ),
        ),
    ),
    Schedule(
        name="plateau",
        description="The rate is multiplied by `factor` when the first objective has not improved "
        "for more than `patience` epochs (torch's ReduceLROnPlateau without cooldown).",
        options=(
            Option(
                name="factor",
                type="float",
                default=0.1,
                low=0.0,
                low_open=True,
                high=1.0,
                high_open=True,
                fusible=True,
                description="Factor of each decay.",
            ),
            Option(
                name="patience",
                type="int",
                default=5,
                low=0,
                high=100_000,
                fusible=True,
                description="Epochs without improvement that are let pass.",
            ),
            Option(
                name="min_delta",
                type="float",
                default=0.0,
                low=0.0,
                fusible=True,
                description="What counts as improvement must be more than this.",
            ),
            _MIN_FACTOR,
            _WARMUP,
        ),
    ),
)
