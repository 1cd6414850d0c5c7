"""Networks that the operator brought: imported from their source, anew whenever it changed.

A trial's network `my_net` becomes `my_net@0123abcd4567`, the source's hash in its name, before
anything else looks at it. So trials of two versions of a file never share a group, a compiled
program or a count, and those on board go on with the version they began with.
"""

import functools
import importlib.machinery
import importlib.util
import inspect
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tuner_service.definition.trial_spec import TrialSpec
from workers.training.data import SOURCES, PreparedData, user_data
from workers.training.frozen_features import FrozenFeatures, only_head
from workers.training.nets import networks
from workers.training.nets.losses import LOSSES, Loss, RowLoss, TargetKind
from workers.training.nets.metrics import UserMetric
from workers.training.nets.networks import Family, InputShape
from workers.user_modules import GIVEN, installed_sources, source_hash

MARK = "@"
HEAD = "+head"  # after the hash: of a network that is given features
HASH_LETTERS = 12
SOURCE = "__tuner_source__"  # where a module keeps the text it was made from
TRIAL_ROWS = 2  # of the forward pass that shows whether the shapes fit

UserLoss = Callable[[Tensor, Tensor], Tensor]


class UserModules:
    """The modules of one directory and of installed packages, by name and source.

    Args:
        check: Refuses, by an exception, what a module did as it was imported.
    """

    def __init__(self, directory: Path | None, *, check: Callable[[], None] | None = None) -> None:
        self._directory = directory
        self._check = check
        self._modules: dict[str, ModuleType] = {}
        self._tried: set[str] = set()
        self._features = FrozenFeatures()
        if directory is not None and str(directory) not in sys.path:
            sys.path.append(str(directory))  # for what the modules import of each other

    def versioned(self, spec: TrialSpec, data: PreparedData) -> TrialSpec:
        """Return the trial with its network (and loss) pinned to the present source.

        A built-in network is left as it is. What the module's code raises comes through.

        Raises:
            LookupError: This worker has no such module.
            TypeError: The module has no `build`, or its network returns the wrong shape.
        """
        name = str(spec.network["type"])
        if name in networks.NETWORKS:
            return spec
        key, module = self._load(name, "build")
        network = {**spec.network, "type": key}
        loss = self._loss(spec.loss, key, module, data)
        self._try(network, data, loss)
        return spec.model_copy(update={"network": network, "loss": loss})

    def head_alone(self, spec: TrialSpec, data: PreparedData) -> tuple[TrialSpec, PreparedData]:
        """Return the trial as one of its network's head on features, if the module declares it.

        Under augmentation, and where the data is streamed, features are not always the same, or
        too many: trial and data are returned as they are.

        Raises:
            TypeError: The features are not always the same for another reason.
        """
        key = str(spec.network["type"])
        augmented = spec.random_flip > 0 or spec.random_crop > 0
        if not networks.NETWORKS[key].user_module or augmented or data.streamed:
            return spec, data
        if not getattr(module_of(key), "cache_features", False):
            return spec, data
        featured = self._features.of(spec.network, data, precision_name=spec.precision)
        if featured is None:
            return spec, data
        self._register_head(key)
        return spec.model_copy(update={"network": {**spec.network, "type": key + HEAD}}), featured

    def _register_head(self, key: str) -> None:
        if key + HEAD not in networks.NETWORKS:
            family = networks.NETWORKS[key]
            build = functools.partial(_build_head, module_of(key))
            networks.NETWORKS[key + HEAD] = replace(family, build=build)

    def versioned_data(self, spec: TrialSpec) -> TrialSpec:
        """Return the trial with its data pinned to the present source, if a module loads it.

        Raises:
            LookupError: This worker has no such module.
            TypeError: The module has no `load_data`.
        """
        name = spec.dataset.name
        if name in SOURCES:
            return spec
        key, module = self._load(name, "load_data")
        if key not in SOURCES:
            SOURCES[key] = user_data.source_of(module.load_data, name)
        return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"name": key})})

    def brings_loss(self, network: str) -> bool:
        """Whether the network is a module's that has a loss of its own.

        Raises:
            LookupError: This worker has no such module.
        """
        if network in networks.NETWORKS:
            return False
        return getattr(self._load(network, "build")[1], "loss", None) is not None

    def embeds(self, network: str) -> bool:
        """Whether the network is a module's that looks its inputs up in tables.

        Its source tells: the network itself can be built only when the data's shape is known.

        Raises:
            LookupError: This worker has no such module.
        """
        if network in networks.NETWORKS:
            return False
        source = self._load(network, "build")[1].__dict__[SOURCE]
        return re.search(r"\bEmbedding(Bag)?\(|\bembedding(_bag)?\(", source) is not None

    def restore(self, key: str, loss: str) -> None:
        """Bring back what `versioned` made in another process.

        Raises:
            LookupError: The source is no longer the same.
        """
        found, module = self._load(key.partition(MARK)[0], "build")
        if key == found + HEAD:
            self._register_head(found)
        elif found != key:
            raise LookupError(f"the source of {key} has changed: it is {found} now")
        base = loss.rpartition(":")[2]
        if base != loss:
            LOSSES[loss] = Loss(_by_row(module.loss), LOSSES[base].targets)

    def _load(self, name: str, part: str) -> tuple[str, ModuleType]:
        path = None if self._directory is None else self._directory / f"{name}.py"
        if path is None or not path.is_file():
            path = installed_sources().get(name)
        if path is None or not path.is_file():
            raise LookupError(
                f"this worker has no module {name!r}; start every worker with --modules DIR, or "
                "install its package beside every worker"
            )
        # The bytes that are hashed are those that are run, whatever is saved over them meanwhile.
        raw = path.read_bytes()
        key = f"{name}{MARK}{source_hash(raw)[:HASH_LETTERS]}"
        if key not in self._modules:
            module = self._imported(f"tuner_module_{key.replace(MARK, '_')}", path, raw)
            self._modules[key] = module
            if callable(getattr(module, "build", None)):
                networks.NETWORKS[key] = Family(
                    functools.partial(_build, module),
                    user_module=True,
                    per_trial=_per_trial(module),
                )
        if not callable(getattr(self._modules[key], part, None)):
            raise TypeError(f"{path.name} must have a function `{part}`")
        return key, self._modules[key]

    def _imported(self, name: str, path: Path, raw: bytes) -> ModuleType:
        before = set(sys.modules)
        module = _import(name, path, raw)
        if self._check is None:
            return module
        try:
            self._check()
        except TypeError:
            # What it imported is to do again what it did, whoever imports it next.
            for new in set(sys.modules) - before:
                del sys.modules[new]
            raise
        return module

    def _loss(self, name: str, key: str, module: ModuleType, data: PreparedData) -> str:
        """Return the name of the module's own loss, if it has one; else the trial's."""
        own = getattr(module, "loss", None)
        if own is None:
            return name
        versioned = f"{key}:{name}"
        if versioned not in LOSSES:
            kind = LOSSES[name].targets
            LOSSES[versioned] = Loss(_by_row(own), kind)
            if _returns_one_number(own, kind, data):
                networks.NETWORKS[key] = replace(
                    networks.NETWORKS[key],
                    fusible=False,
                    reason="its loss returns one number for a batch; return one per row",
                )
        return versioned

    def _try(self, network: Mapping[str, Any], data: PreparedData, loss: str) -> None:
        """Build the network once, and send two rows through it, the loss, and back."""
        key = repr((sorted(network.items()), data.shape, data.outputs, loss))
        if key in self._tried:
            return
        inputs = data.train.inputs[:TRIAL_ROWS].cpu()
        # On two rows, before the group is made: a fault is this trial's, told with its shapes, not
        # that of a step which others share.
        with networks.seeded(0):
            built = networks.build(network, inputs=data.shape, outputs=data.outputs)
            outputs = built.to(inputs.dtype).eval()(inputs)
        wanted = (len(inputs), data.outputs)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TypeError(
                f"the network must return a tensor of the shape [rows, outputs], {wanted} here, "
                f"but got {got}"
            )
        _go_back(outputs, data.train.targets[:TRIAL_ROWS].cpu(), loss)
        self._tried.add(key)


def _go_back(outputs: Tensor, targets: Tensor, loss: str) -> None:
    """Take the loss and its gradients.

    Raises:
        TypeError: Loss and network do not fit each other.
    """
    with _fitting(loss.rpartition(":")[2], outputs, targets):
        value = LOSSES[loss].rows(outputs, targets, 0.0).mean()
    if not value.requires_grad:
        raise TypeError("the loss has no gradient: it must come from the network's output")
    value.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _fitting(loss: str, outputs: Tensor, targets: Tensor) -> Iterator[None]:
    """Say the shapes with what a loss raises."""
    try:
        yield
    except Exception as error:
        raise TypeError(
            f"the loss {loss} does not take the network's output of the shape "
            f"{tuple(outputs.shape)} with a target of the shape {tuple(targets.shape)} "
            f"({targets.dtype}): {type(error).__name__}: {error}"
        ) from error


def arguments(
    network: Mapping[str, Any], build: Callable[..., object], *, inputs: InputShape, outputs: int
) -> dict[str, Any]:
    """Return what `build` is called with: its own parameters, and the shapes it asks for."""
    known = inspect.signature(build).parameters
    given = {name: value for name, value in network.items() if name != "type"}
    shapes = {"inputs": tuple(inputs), "outputs": outputs}
    return {**given, **{name: shapes[name] for name in GIVEN if name in known}}


def is_user_module(network: Mapping[str, Any]) -> bool:
    """Whether a network, as the engine sees it, is of a module."""
    return networks.NETWORKS[str(network["type"])].user_module


def metrics_of(network: Mapping[str, Any]) -> Mapping[str, UserMetric]:
    """Return the metrics that a network's module brings.

    Raises:
        TypeError: They are no dictionary of functions.
    """
    if not is_user_module(network):
        return {}
    metrics = getattr(module_of(str(network["type"])), "metrics", {})
    if not isinstance(metrics, dict) or not all(callable(one) for one in metrics.values()):
        raise TypeError("metrics must be a dictionary {name: function(output, target)}")
    return metrics


def described(network: Mapping[str, Any], data: PreparedData) -> dict[str, Any]:
    """Return what rebuilds a pinned module's network: its name, source and arguments."""
    key = str(network["type"])
    module = module_of(key)
    return {
        "network": {**network, "type": key.partition(MARK)[0]},
        "build": arguments(network, module.build, inputs=data.shape, outputs=data.outputs),
        "source": module.__dict__[SOURCE],
    }


def directory_of(network: Mapping[str, Any]) -> str | None:
    """Return where a network's module lies; None for a built-in one."""
    if not is_user_module(network):
        return None
    return str(Path(str(module_of(str(network["type"])).__file__)).parent)


def module_of(key: str) -> ModuleType:
    """Return a pinned module."""
    build: Any = networks.NETWORKS[key].build
    module: ModuleType = build.args[0]
    return module


def _per_trial(module: ModuleType) -> frozenset[str]:
    """Return the options that a module says trials of one group may differ in.

    Raises:
        TypeError: One is no option of `build`, or has no default.
    """
    named = getattr(module, "per_trial", ())
    known = inspect.signature(module.build).parameters
    for name in named:
        if name not in known or known[name].default is inspect.Parameter.empty:
            raise TypeError(
                f"per_trial must name parameters of build that have defaults, but got {name!r}"
            )
    return frozenset(named)


def _build(
    module: ModuleType, network: Mapping[str, Any], inputs: InputShape, outputs: int
) -> nn.Module:
    built = module.build(**arguments(network, module.build, inputs=inputs, outputs=outputs))
    if not isinstance(built, nn.Module):
        raise TypeError(f"build must return a torch.nn.Module, but got {type(built).__name__}")
    if next(built.parameters(), None) is None:
        raise TypeError("build returned a module without parameters: there is nothing to train")
    for one in built.modules():
        if isinstance(one, (nn.Embedding, nn.EmbeddingBag)):
            one.register_forward_pre_hook(_of_whole_numbers)
    return built


def _of_whole_numbers(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs are floats on their way to the network; a table is looked up by whole numbers."""
    del module
    return given[0].long(), *given[1:]


def _build_head(
    module: ModuleType, network: Mapping[str, Any], inputs: InputShape, outputs: int
) -> nn.Module:
    return only_head(_build(module, network, inputs, outputs))


def _import(name: str, path: Path, source: bytes) -> ModuleType:
    """Run the source as a module of that name; one that fails leaves nothing behind."""
    linecache.checkcache(str(path))  # tracebacks show the lines of today's file
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise ImportError(f"cannot import {path.name}")
    module = importlib.util.module_from_spec(spec)
    code = loader.source_to_code(source, str(path))
    module.__dict__[SOURCE] = source.decode()
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        exec(code, module.__dict__)  # noqa: S102  this is what --modules is for
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _by_row(loss: UserLoss) -> RowLoss:
    """Return a user's loss as one by row: its own rows, or its one number for each of them."""

    def rows(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
        del smoothing
        if outputs.dim() > 2:  # [K, B, O]: one lane at a time, as the loss knows no lanes
            pairs = zip(outputs, targets, strict=True)
            return torch.stack([rows(output, target, 0.0) for output, target in pairs])
        value = loss(outputs, targets)
        if value.dim() == 0:
            return value.expand(len(outputs))
        if tuple(value.shape) != (len(outputs),):
            raise TypeError(
                "loss must return one number, or one per row, but got the shape "
                f"{tuple(value.shape)} for {len(outputs)} rows"
            )
        return value

    return rows


def _returns_one_number(loss: UserLoss, kind: TargetKind, data: PreparedData) -> bool:
    targets = data.train.targets[:TRIAL_ROWS].cpu()
    outputs = torch.zeros(len(targets), data.outputs, dtype=data.train.inputs.dtype)
    with torch.no_grad(), _fitting("of the module", outputs, targets):
        value = loss(outputs, targets)
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, but got {type(value).__name__}")
    return value.dim() == 0
