"""What an entry of the catalogue is."""

from collections.abc import Container, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from tuner_service.definition.options import Option

Task = Literal["classification", "regression"]
Inputs = Literal["table", "image", "sequence"]


class Entry(BaseModel):
    """One thing that a definition can name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    options: tuple[Option, ...] = ()

    def option(self, name: str) -> Option | None:
        """Return the option of that name, or None."""
        return next((option for option in self.options if option.name == name), None)

    def complete(self, given: Mapping[str, Any], *, without: Container[str] = ()) -> dict[str, Any]:
        """Return every option's value: the given one, else its default.

        Args:
            without: Options that are left out.

        Raises:
            ValueError: A name that is given is none of these options.
        """
        options = {o.name: o.default for o in self.options if o.name not in without}
        if unknown := given.keys() - options:
            raise ValueError(f"{self.name} has no option {', '.join(sorted(unknown))}")
        return {name: given.get(name, default) for name, default in options.items()}


class Activation(Entry):
    """A non-linearity. `zero_at_zero`: padding a layer with zero units leaves its output as is."""

    zero_at_zero: bool


class Network(Entry):
    """A network family.

    Attributes:
        inputs: The kinds of data it takes.
        native_limits: Up to which widths native code trains any of its networks in one group on a
            CPU; wider ones are probed one by one. None: there is no native code for it.
    """

    inputs: tuple[Inputs, ...]
    native_limits: Mapping[str, int] | None = None


class Optimizer(Entry):
    """An update rule.

    Attributes:
        fusible: Its kind may differ within a fused group, on any device.
        native: Native code has it: there, on a CPU, every kind may differ within a group.
    """

    fusible: bool
    native: bool = True


class Schedule(Entry):
    """How the learning rate moves over a trial."""


class Loss(Entry):
    """What training minimises. `classes`: how many it takes; None for any number."""

    task: Task
    classes: int | None = None


class Metric(Entry):
    """What is measured of predictions.

    Attributes:
        more_classes_than: So many classes or fewer make it meaningless.
        classes: The only number of classes it is defined for; None: any.
    """

    tasks: tuple[Task, ...]
    direction: Literal["maximize", "minimize"]
    more_classes_than: int = 1
    classes: int | None = None


class Dataset(Entry):
    """Data to train on.

    Attributes:
        task: None when the definition says it: its `task` option, its loss or its metrics.
        inputs: What a row is; None when only the data can tell.
        rows: Rows outside the data's own test part; None when only the data can tell.
        classes: None for regression, or when only the data can tell.
        own_test: The data brings its own test part.
    """

    task: Task | None
    inputs: Inputs | None
    rows: int | None = None
    classes: int | None = None
    own_test: bool = False


Draws = Literal["independent", "even", "sobol"]


class SamplerEntry(Entry):
    """What proposes parameters. One that a package brings is `BROUGHT_SAMPLER`, by its own name.

    Attributes:
        fixed_at_submit: It looks at no result: parameters are in the slots from the start.
        budget_from_grid: The grid's points are the budget, each of them once.
        default_parallel: The most trials at once where the study does not say.
        parallel_share: Of its trials, only one in so many at once (but four): more at once, and it
            would learn from too few of them. None: however many.
        draws: How what is fixed at submit lies: each by itself, or spread over the space.
    """

    fixed_at_submit: bool = False
    budget_from_grid: bool = False
    default_parallel: int = 64
    parallel_share: int | None = None
    draws: Draws = "independent"


class PrunerEntry(Entry):
    """What stops bad trials early. `prunes`: whether it ever does."""

    prunes: bool = True


EntryT = TypeVar("EntryT", bound=Entry)


def by_name(*entries: EntryT) -> Mapping[str, EntryT]:
    """Return the entries by their names, in this order."""
    return {entry.name: entry for entry in entries}
