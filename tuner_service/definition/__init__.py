"""The study definition: models, search space, catalogue, checks, and one trial's instructions."""

from tuner_service.definition.catalogue import catalogue_view
from tuner_service.definition.grid import grid_count, grid_values
from tuner_service.definition.limits import Limits
from tuner_service.definition.options import Option, Scalar
from tuner_service.definition.parse import parse_definition
from tuner_service.definition.plan import (
    fusing,
    most_epochs,
    parallel_trials,
    required_modules,
    total_slots,
    warnings_of,
)
from tuner_service.definition.published_schema import study_schema
from tuner_service.definition.sections import (
    Budget,
    Objective,
    Pruner,
    Resources,
    Sampler,
    Training,
)
from tuner_service.definition.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
)
from tuner_service.definition.study import StudyDefinition, space_of
from tuner_service.definition.trial_spec import (
    DatasetSpec,
    EarlyStoppingSpec,
    SplitSpec,
    TrialSpec,
    UserLoopSpec,
    bindings,
    resolve,
    resolve_user_loop,
    study_task,
)
from tuner_service.definition.uploads import Upload, upload_path
from tuner_service.definition.user_modules import ModuleDescription
from tuner_service.definition.yaml12 import lines_of, load_study, load_yaml

__all__ = [
    "Budget",
    "CategoricalParameter",
    "DatasetSpec",
    "EarlyStoppingSpec",
    "FloatParameter",
    "IntParameter",
    "Limits",
    "ModuleDescription",
    "Objective",
    "Option",
    "Parameter",
    "Pruner",
    "Resources",
    "Sampler",
    "Scalar",
    "Space",
    "SplitSpec",
    "StudyDefinition",
    "Training",
    "TrialSpec",
    "Upload",
    "UserLoopSpec",
    "bindings",
    "catalogue_view",
    "fusing",
    "grid_count",
    "grid_values",
    "lines_of",
    "load_study",
    "load_yaml",
    "most_epochs",
    "parallel_trials",
    "parse_definition",
    "required_modules",
    "resolve",
    "resolve_user_loop",
    "space_of",
    "study_schema",
    "study_task",
    "total_slots",
    "upload_path",
    "warnings_of",
]
