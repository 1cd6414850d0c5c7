"""The study definition: one model for YAML, JSON, the published schema and the stored study.

The models check structure: keys, types, ranges within one value. What needs two sections or the
catalogue (names, options, conditions, the grid's size) is checked by `parse_definition`, the only
way in for a user's definition. A stored definition was checked once and is read back with
`StudyDefinition.model_validate`.

None in an optional field means "not given"; dumps leave such fields out.
"""

from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, field_serializer

from tuner_service.definition.sections import (
    Budget,
    Dataset,
    Network,
    Objective,
    Pruner,
    Resources,
    Sampler,
    Training,
)
from tuner_service.definition.space import Parameter, Space, ordered
from tuner_service.definition.types import (
    IDENTIFIER,
    STUDY_NAME,
    DefinitionModel,
    Int,
    OneOrMore,
    ScalarField,
    Text,
)

MAX_OBJECTIVES = 3
MAX_PARAMETERS = 64
MAX_ENQUEUED = 1000
MAX_TAGS = 32

_NO_OTHER_KEYS: dict[str, JsonValue] = {"additionalProperties": False}

Name = Annotated[str, Field(pattern=STUDY_NAME, max_length=128)]
ParameterName = Annotated[str, Field(pattern=IDENTIFIER, max_length=64)]
TagKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$", max_length=64)]
Point = Annotated[dict[ParameterName, ScalarField], Field(json_schema_extra=_NO_OTHER_KEYS)]


class StudyDefinition(DefinitionModel):
    """One study: data, network, search space, search method, training and budget."""

    name: Name = Field(description="Letters, digits, `.`, `_`, `-`; at most 128.")
    dataset: Dataset | None = Field(
        default=None, description="Required, but for a training loop, which brings its own data."
    )
    network: Network
    objective: Annotated[
        tuple[Objective, ...], Field(min_length=1, max_length=MAX_OBJECTIVES), OneOrMore()
    ] = Field(description="One objective, or a list of up to three.")
    parameters: dict[ParameterName, Parameter] = Field(
        min_length=1,
        max_length=MAX_PARAMETERS,
        description="What is searched, by the names that the network, the optimizer, the "
        "schedule or the training loop know.",
        json_schema_extra=_NO_OTHER_KEYS,
    )
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    training: Training = Training()
    budget: Budget = Budget()
    resources: Resources = Resources()
    enqueue: tuple[Point, ...] = Field(
        default=(),
        max_length=MAX_ENQUEUED,
        description="Points to try first; what a point leaves out is sampled.",
    )
    tags: dict[TagKey, Text] = Field(
        default={},
        max_length=MAX_TAGS,
        description="Names and values of your own, to find studies by.",
        json_schema_extra=_NO_OTHER_KEYS,
    )
    priority: Int = Field(
        default=0, ge=-100, le=100, description="Studies of higher priority are served first."
    )

    @property
    def is_user_loop(self) -> bool:
        """Whether a worker's module trains by itself; only then is there no data set."""
        return self.dataset is None

    @field_serializer("objective")
    def _one_or_list(self, objective: tuple[Objective, ...]) -> Any:
        dumped = [one.model_dump(mode="json") for one in objective]
        return dumped[0] if len(dumped) == 1 else dumped

    def with_name(self, name: str) -> Self:
        """Return the same definition under another name."""
        return self.model_copy(update={"name": name})


def space_of(definition: StudyDefinition) -> Space:
    """Return the definition's search space in topological order, otherwise as written."""
    return ordered(definition.parameters)
