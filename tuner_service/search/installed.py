"""Samplers and pruners of installed packages, found by their entry points.

    [project.entry-points."tuner_service.samplers"]
    toy = "toy_package.search:ToySampler"

    [project.entry-points."tuner_service.pruners"]
    strict = "toy_package.search:StrictPruner"

The name is the entry point's; its options are the parameters of the class's `__init__`, with their
types and defaults and what the docstring's `Args:` says of each, and its description is the first
line of its class's docstring. A sampler is a class with `ask` (`samplers.registry.Sampler`) or a
`BaseSampler` of Optuna's; a pruner is one with `should_prune` (`pruners.registry.Pruner`). Of
`space`, `seed`, `maximize`, `epochs` and `study_name` they are given what they name.

A class is tried on a small search before it is offered, so that one that cannot be loaded, forgets
its seed or leaves the space is refused with the reason, and no study waits for a worker that fails.
What it does later is held against the study, too: `GuardedSampler`, `GuardedPruner`.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from optuna.samplers import BaseSampler

from tuner_service.definition.catalogue import PRUNERS as BUILTIN_PRUNERS
from tuner_service.definition.catalogue import SAMPLERS as BUILTIN_SAMPLERS
from tuner_service.definition.options import Option, OptionType
from tuner_service.definition.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Space,
    contains,
    ordered,
)
from tuner_service.definition.user_modules import (
    ModuleDescription,
    RefusedModule,
    described_parameters,
)
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, HistoryTrial, MirroredTrial
from tuner_service.search.pruners.registry import PRUNERS, Pruner, PrunerContext
from tuner_service.search.samplers.optuna_adapter import OptunaSampler
from tuner_service.search.samplers.registry import SAMPLERS, Sampler

logger = logging.getLogger(__name__)

Kind = Literal["sampler", "pruner"]
GROUPS: Mapping[Kind, str] = {
    "sampler": "tuner_service.samplers",
    "pruner": "tuner_service.pruners",
}
GIVEN = frozenset({"space", "seed", "maximize", "epochs", "study_name"})
"""Parameters of a class that the study decides; all others are its options."""

_TYPES: Mapping[Any, OptionType] = {int: "int", float: "float", bool: "boolean", str: "string"}
_TRIALS = 20  # of the history on which a sampler is tried: beyond the start of Optuna's


@dataclass(frozen=True, slots=True)
class Installed:
    """A sampler or pruner that a package brings.

    Attributes:
        make: The class.
        package: Name and version of the distribution.
    """

    name: str
    kind: Kind
    make: type
    options: tuple[Option, ...]
    package: str

    @property
    def description(self) -> ModuleDescription:
        """What a worker publishes of it."""
        text = inspect.getdoc(self.make) or f"{self.kind.capitalize()} of {self.package}."
        return ModuleDescription(
            name=self.name,
            description=text.partition("\n")[0],
            parameters=self.options,
            defines=(self.kind,),
            source_hash=self.package,
        )

    def sampler(
        self, space: Space, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]
    ) -> Sampler:
        """Return the sampler of a study."""

        def make() -> Sampler:
            if issubclass(self.make, BaseSampler):
                return OptunaSampler(
                    space,
                    maximize=maximize,
                    sampler_for=lambda slot: self._made(settings, seed=_slot_seed(seed, slot)),
                )
            made: Sampler = self._made(settings, space=space, seed=seed, maximize=maximize)
            return made

        return GuardedSampler(self, space, make)

    def pruner(self, settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
        """Return the pruner of a study."""

        def make() -> Pruner:
            made: Pruner = self._made(
                settings,
                maximize=context.maximize,
                epochs=context.epochs,
                study_name=context.study_name,
            )
            return made

        return GuardedPruner(self, make)

    def _made(self, settings: Mapping[str, Any], **given: Any) -> Any:
        wanted = inspect.signature(self.make).parameters
        return self.make(
            **settings, **{name: value for name, value in given.items() if name in wanted}
        )


@contextmanager
def _speaking_of(one: Installed) -> Iterator[None]:
    """Turn whatever a package's code raises into an error that ends a trial, not the worker."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"{one.kind} {one.name} ({one.package}): {type(error).__name__}: {error}"
        ) from error


@dataclass
class GuardedSampler:
    """A package's sampler: what it raises, or proposes against the space, is an error of its own.

    It is made at the first ask, so that what its `__init__` refuses ends a trial, too.
    """

    package: Installed
    space: Space
    make: Callable[[], Sampler]

    @cached_property
    def _sampler(self) -> Sampler:
        return self.make()

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters for a slot.

        Raises:
            RuntimeError: The package's code raised something, or left the space.
        """
        with _speaking_of(self.package):
            point = self._sampler.ask(history, slot=slot, fixed=fixed)
            _check_point(self.space, point, fixed)
        return point


def _check_point(space: Space, point: object, fixed: Mapping[str, Any]) -> None:
    if not isinstance(point, Mapping):
        raise TypeError(f"ask must return the parameters by name, but got {point!r}")
    if point.keys() != (wanted := space.active(point)):
        raise ValueError(f"it must propose {sorted(wanted)}, which apply, but got {sorted(point)}")
    for name, value in point.items():
        if not contains(domain := space[name], value):
            raise ValueError(f"it must stay in the space, but got {name}={value!r}, where {domain}")
        if name in fixed and value != fixed[name]:
            raise ValueError(f"it must keep the fixed {name}={fixed[name]!r}, but got {value!r}")


@dataclass
class GuardedPruner:
    """A package's pruner: what it raises is an error of its own; made when first asked."""

    package: Installed
    make: Callable[[], Pruner]

    @cached_property
    def _pruner(self) -> Pruner:
        return self.make()

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return whether the trial should stop.

        Raises:
            RuntimeError: The package's code raised something, or answered neither True nor False.
        """
        with _speaking_of(self.package):
            said = self._pruner.should_prune(history, trial)
            if not isinstance(said, bool):
                raise TypeError(f"should_prune must return True or False, but got {said!r}")
        return said


@dataclass(frozen=True, slots=True)
class Found:
    """What the installed packages bring: by kind and name, and what is refused."""

    sound: Mapping[tuple[Kind, str], Installed]
    refused: tuple[RefusedModule, ...]


@cache
def found() -> Found:
    """Return the samplers and pruners of the installed packages, loaded and tried once."""
    sound: dict[tuple[Kind, str], Installed] = {}
    refused: list[RefusedModule] = []
    for kind, group in GROUPS.items():
        for point in entry_points(group=group):
            try:
                _check_name(point.name, kind, sound)
                sound[kind, point.name] = _loaded(point, kind)
            except Exception as error:  # noqa: BLE001  a package's code may raise anything
                raised = error.__cause__ or error  # of a guard: what the package's code raised
                reason = f"{point.value} as a {kind}: {type(raised).__name__}: {raised}"[:500]
                refused.append(RefusedModule(file=point.name, reason=reason))
                logger.warning("%s %s is not offered: %s", kind, point.name, reason)
    return Found(sound, tuple(refused))


def sampler_of(
    kind: str, space: Space, *, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]
) -> Sampler:
    """Return a study's sampler, built in or installed.

    Raises:
        LookupError: There is none of that name.
    """
    make = SAMPLERS[kind] if kind in SAMPLERS else _installed("sampler", kind).sampler
    return make(space, seed, maximize, settings)


def pruner_of(kind: str, settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    """Return a study's pruner, built in or installed.

    Raises:
        LookupError: There is none of that name.
    """
    make = PRUNERS[kind] if kind in PRUNERS else _installed("pruner", kind).pruner
    return make(settings, context)


def _installed(kind: Kind, name: str) -> Installed:
    known = found()
    if (kind, name) in known.sound:
        return known.sound[kind, name]
    why = next((f": {one.reason}" for one in known.refused if one.name == name), "")
    raise LookupError(f"this worker has no {kind} {name!r}{why}; install its package beside it")


def _check_name(name: str, kind: Kind, taken: Mapping[tuple[Kind, str], object]) -> None:
    if not name.isidentifier():
        raise ValueError(f"its name must be letters, digits and _, but is {name!r}")
    # A worker's modules, of whatever kind, share one list of names.
    if name in BUILTIN_SAMPLERS or name in BUILTIN_PRUNERS or name in {one for _, one in taken}:
        raise ValueError(f"the name {name!r} is taken")


def _loaded(point: EntryPoint, kind: Kind) -> Installed:
    make = point.load()
    if not isinstance(make, type):
        raise TypeError(f"it must be a class, but got {make!r}")
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    one = Installed(point.name, kind, make, tuple(_options(make)), package)
    if kind == "sampler":
        _try_sampler(one)
    else:
        _try_pruner(one)
    return one


# -- options --------------------------------------------------------------------------------


def _options(make: type) -> Iterator[Option]:
    hints = get_type_hints(getattr(make, "__init__"))  # noqa: B009  a class's, not an instance's
    told = described_parameters(inspect.getdoc(getattr(make, "__init__")) or "")  # noqa: B009
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError("it must name every parameter: no *args, no **kwargs")
        if name not in GIVEN:
            text = told.get(name, f"{name} of its class.")
            yield _option(name, parameter, hints.get(name), text)


def _option(name: str, parameter: inspect.Parameter, hint: Any, description: str) -> Option:
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    also: tuple[None, ...] = (None,) if default is None and not required else ()
    choices: tuple[Any, ...] = ()
    sides = [side for side in get_args(hint) if side is not type(None)]
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    elif type(None) in get_args(hint) and len(sides) == 1:
        also, hint = (None,), sides[0]
    if hint not in _TYPES:
        raise TypeError(
            f"the parameter {name!r} must be of type int, float, bool, str or Literal[…], or one "
            f"of these | None, but got {hint}"
        )
    return Option(
        name=name,
        type=_TYPES[hint],
        description=description,
        default=default,
        required=required,
        choices=choices,
        also=also,
        searchable=False,
    )


# -- trying ---------------------------------------------------------------------------------

_TRY_SPACE = ordered(
    {
        "rate": FloatParameter(type="float", low=1e-4, high=1.0, log=True),
        "width": IntParameter(type="int", low=1, high=64),
        "kind": CategoricalParameter(type="categorical", choices=("a", "b")),
        "share": FloatParameter(type="float", low=0.0, high=1.0, step=0.25),
        "depth": IntParameter(type="int", low=1, high=4, when={"kind": ("a",)}),
    }
)


def _settings(one: Installed) -> dict[str, Any]:
    missing = [option.name for option in one.options if option.required]
    if missing:
        raise TypeError(f"the parameter {missing[0]!r} must have a default")
    return {}


def _try_history() -> History:
    """Return a history of finished trials, one that runs, and curves of two epochs."""
    history = History(distributions(_TRY_SPACE))
    generator = np.random.default_rng(0)
    by_name = distributions(_TRY_SPACE)
    for number in range(_TRIALS + 1):
        value = float(generator.random())
        point = {"rate": 10 ** -(4 * value), "width": 1 + number, "kind": "ab"[number % 2]}
        point |= {"share": 0.25 * (number % 5)} | ({} if number % 2 else {"depth": 1 + number % 4})
        history.merge(
            [
                HistoryTrial(
                    trial_id=number + 1,
                    number=number,
                    state="COMPLETE" if number < _TRIALS else "RUNNING",
                    params=point,
                    distributions={name: by_name[name] for name in point},
                    values=[value] if number < _TRIALS else None,
                    intermediate_values={1: value, 2: value / 2},
                )
            ]
        )
    return history


def _try_sampler(one: Installed) -> None:
    """Ask it without and with a history; twice of one slot it must say the same."""
    settings, full = _settings(one), _try_history()

    def ask(history: History, slot: int, **fixed: Any) -> dict[str, Any]:
        return one.sampler(_TRY_SPACE, 1, [False], settings).ask(history, slot=slot, fixed=fixed)

    for history in (History(distributions(_TRY_SPACE)), full):
        for slot in range(3):
            said = [ask(history, slot) for _ in range(2)]
            if said[0] != said[1]:
                raise ValueError(
                    f"it must propose the same for one seed and number, but got {said}"
                )
    ask(full, 3, width=5)


def _try_pruner(one: Installed) -> None:
    history = _try_history()
    context = PrunerContext("a-study", maximize=False, epochs=4)
    one.pruner(_settings(one), context).should_prune(history, history[_TRIALS + 1])


def _slot_seed(seed: int, slot: int) -> int:
    return int(np.random.SeedSequence((seed, slot)).generate_state(1)[0])
