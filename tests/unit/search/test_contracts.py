"""Every built-in sampler and pruner, and those of a package, keep their contracts."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.extend_page import TOY_SAMPLERS, install
from tests.unit.search.contracts import SPACE, PrunerContract, SamplerContract, history_of
from tuner_service.definition import parse_definition, required_modules
from tuner_service.definition.catalogue import PRUNERS as PRUNER_ENTRIES
from tuner_service.definition.catalogue import SAMPLERS as SAMPLER_ENTRIES
from tuner_service.definition.space import Space
from tuner_service.errors import DefinitionError
from tuner_service.search import installed
from tuner_service.search.history import History, MirroredTrial
from tuner_service.search.pruners.registry import PRUNERS, Pruner, PrunerContext
from tuner_service.search.samplers.optuna_adapter import optuna_tpe
from tuner_service.search.samplers.registry import SAMPLERS, Sampler
from workers.offers import offers_of
from workers.supervisor.studies import STUDY_ERRORS
from workers.user_modules import installed_sources

from tests.unit.search import builders  # isort: skip


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package of docs/extend.md on the path, as if pip had put it there."""
    directory = install(tmp_path_factory.mktemp("site"))
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    for remembered in (installed.found, installed_sources):
        remembered.cache_clear()
    yield directory
    sys.path.remove(str(directory))
    for remembered in (installed.found, installed_sources):
        remembered.cache_clear()
    for name in [one for one in sys.modules if one.partition(".")[0] == "toy_package"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", [*SAMPLERS, *TOY_SAMPLERS], scope="class")
class TestSamplers(SamplerContract):
    @pytest.fixture(autouse=True)
    def named(self, name: str) -> None:
        self.name = name

    def make(self, known: Space, *, seed: int, maximize: bool) -> Sampler:
        entry = SAMPLER_ENTRIES.get(self.name)
        options = entry.complete({}) if entry is not None else {}
        return installed.sampler_of(
            self.name, known, seed=seed, maximize=[maximize], settings=options
        )


class TestOptunasTpeForSeveralObjectives(SamplerContract):
    def make(self, known: Space, *, seed: int, maximize: bool) -> Sampler:
        settings = SAMPLER_ENTRIES["tpe"].complete({})
        return optuna_tpe(known, seed=seed, maximize=[maximize], settings=settings)


BOUNDS = {"threshold": {"lower": -1e9, "upper": 1e9}}


@pytest.mark.parametrize("name", [*PRUNERS, "toy_pruner"], scope="class")
class TestPruners(PrunerContract):
    @pytest.fixture(autouse=True)
    def named(self, name: str) -> None:
        self.name = name
        entry = PRUNER_ENTRIES.get(name)
        # A bound that no value here leaves is none; what is best or worst it does not know.
        self.prunes = name != "threshold" and (entry is None or entry.prunes)

    def make(self, context: PrunerContext) -> Pruner:
        entry = PRUNER_ENTRIES.get(self.name)
        options = {} if entry is None else entry.complete(BOUNDS.get(self.name, {}))
        return installed.pruner_of(self.name, options, context)


# -- what a worker says of a package --------------------------------------------------------


def test_a_package_is_offered_and_a_study_may_name_what_it_brings() -> None:
    offers = offers_of(None).read()
    assert set(offers.sound) >= {"toy_net", "toy_rings", "toy_pruner", *TOY_SAMPLERS}
    assert offers.refused == ()
    body = builders.definition(sampler={"type": "toy_sampler", "anew": 0.2, "seed": 3})
    body |= {"pruner": {"type": "toy_pruner"}, "budget": {"trials": 80}}
    study = parse_definition(body, modules=offers.sound)
    assert required_modules(study) == ("toy_sampler", "toy_pruner")
    assert study.sampler.settings == {"anew": 0.2}
    assert not study.sampler.entry.fixed_at_submit


@pytest.mark.parametrize(
    ("section", "pointer", "said"),
    [
        ({"sampler": {"type": "toy_samplr"}}, "/sampler/type", "did you mean 'toy_sampler'"),
        ({"sampler": {"type": "toy_sampler", "new": 1}}, "/sampler/new", "no option"),
        ({"sampler": {"type": "toy_sampler", "anew": "x"}}, "/sampler/anew", "must be a number"),
        ({"pruner": {"type": "toy_prunr"}}, "/pruner/type", "did you mean 'toy_pruner'"),
    ],
)
def test_what_a_package_does_not_bring_is_refused(
    section: dict[str, object], pointer: str, said: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(builders.definition(**section), modules=offers_of(None).read().sound)
    (fault,) = caught.value.faults
    assert fault.pointer == pointer
    assert said in fault.detail


def test_a_worker_without_the_package_says_what_it_lacks() -> None:
    with pytest.raises(LookupError, match="no sampler 'unheard_of'; install its package"):
        installed.sampler_of("unheard_of", Space(()), seed=0, maximize=[True], settings={})


BAD = {
    "random": ("class Bad:\n    pass", "the name 'random' is taken"),
    "no_class": ("Bad = 3", "must be a class"),
    "imports": ("import no_such_package", "No module named 'no_such_package'"),
    "outside": (
        "class Bad:\n    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed):\n"
        "        return {'rate': 9.0, 'width': 5, 'kind': 'b', 'share': 0.5}",
        "it must stay in the space, but got rate=9.0",
    ),
    "restless": (
        "import itertools\nn = itertools.count(1)\nclass Bad:\n"
        "    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed):\n"
        "        return {'rate': 0.1, 'width': next(n), 'kind': 'b', 'share': 0.5, **fixed}",
        "the same for one seed and number",
    ),
    "between": (
        "class Bad:\n    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed):\n"
        "        return {'rate': 0.1, 'width': 5, 'kind': 'b', 'share': 0.3}",
        "it must stay in the space, but got share=0.3",
    ),
    "whatever": (
        "class Bad:\n    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed):\n"
        "        return {'rate': 0.1, 'width': 5, 'kind': 'b', 'share': 0.5, 'depth': 1}",
        "which apply, but got ['depth', 'kind', 'rate', 'share', 'width']",
    ),
    "unkept": (
        "class Bad:\n    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed):\n"
        "        return {'rate': 0.1, 'width': 7, 'kind': 'b', 'share': 0.5}",
        "it must keep the fixed width=5, but got 7",
    ),
    "nothing": (
        "class Bad:\n    def __init__(self, space): pass\n"
        "    def ask(self, history, *, slot, fixed): pass",
        "ask must return the parameters by name, but got None",
    ),
    "loose": ("class Bad:\n    def __init__(self, space, **more): pass", "no **kwargs"),
    "odd": ("class Bad:\n    def __init__(self, space, at: list = ()): pass", "must be of type"),
    "cma": ("from optuna.samplers import NSGAIISampler\n"
            "class Bad(NSGAIISampler):\n    def __init__(self, seed: int):\n"
            "        super().__init__(seed=seed)", "keeps its state in attributes of trials"),
    "torchy": ("import torch\nclass Bad:\n    def __init__(self, space): pass", "torch is not"),
    "gp": ("from optuna.samplers import GPSampler\nclass Bad(GPSampler):\n"
           "    def __init__(self, seed: int):\n        super().__init__(seed=seed)",
           "torch is not imported in a supervisor"),
}  # fmt: skip

REPORT = """
import sys, warnings
warnings.simplefilter("ignore")
from workers.supervisor.no_torch import refuse_torch
refuse_torch()
import workers.celery_app, workers.tasks, workers.health
from workers.offers import offers_of
from tuner_service.search.installed import sampler_of
from tuner_service.search.samplers.registry import SAMPLERS
for one in offers_of(None).read().refused:
    print(one.file, one.reason)
assert "torch" not in sys.modules
"""


def test_what_is_wrong_with_a_package_is_said_and_the_supervisor_has_no_torch(
    tmp_path: Path,
) -> None:
    """In a process of its own, as here torch is imported already."""
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    points = ["[tuner_service.samplers]", *(f"{name} = bad_{name}:Bad" for name in BAD)]
    (info / "entry_points.txt").write_text("\n".join(points))
    for name, (source, _) in BAD.items():
        (tmp_path / f"bad_{name}.py").write_text(source)
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((root, str(tmp_path)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, (_, reason) in BAD.items():
        (line,) = (one for one in done.stdout.splitlines() if one.startswith(f"{name} "))
        assert reason in line


class Unfinished:
    """Has not the attributes that it reads, and wants a share below 1."""

    def __init__(self, share: float = 0.5) -> None:
        if share > 1:
            raise AssertionError("share must be at most 1")

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        return self.nothing  # type: ignore[attr-defined,no-any-return]

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        return trial.nothing  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(("share", "said"), [(0.5, "AttributeError: .*nothing"), (2, "at most 1")])
def test_whatever_a_packages_code_raises_is_an_error_of_its_study(share: float, said: str) -> None:
    """A supervisor that fails on it would fail again at every start, and every study with it."""
    history = history_of(SPACE, 1)
    sampler = installed.Installed("odd", "sampler", Unfinished, (), "toy 1.0").sampler(
        SPACE, 1, [False], {"share": share}
    )
    with pytest.raises(STUDY_ERRORS, match=rf"sampler odd \(toy 1.0\): .*{said}"):
        sampler.ask(history, slot=0, fixed={})
    pruner = installed.Installed("odd", "pruner", Unfinished, (), "toy 1.0").pruner(
        {"share": share}, PrunerContext("a-study", maximize=False, epochs=3)
    )
    with pytest.raises(STUDY_ERRORS, match=rf"pruner odd \(toy 1.0\): .*{said}"):
        pruner.should_prune(history, history[1])
