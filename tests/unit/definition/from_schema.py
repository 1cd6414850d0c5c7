"""Values that a JSON Schema allows, for the keywords that the published schema uses."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Strategy = st.SearchStrategy[Any]

_WORDS = ("sgd", "adam", "relu", "optimizer", "momentum", "dropout", "digits", "full", "")
_SMALL = 4  # entries beyond the least number


def from_schema(schema: Schema, root: Schema) -> Strategy:
    """Return values that fit the schema; `root` resolves its references."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return st.deferred(lambda: from_schema(root["$defs"][name], root))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return st.one_of([from_schema(option, root) for option in schema[key]])
    kinds = schema.get("type", ["null", "boolean", "integer", "number", "string"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return st.one_of([_of_type(kind, schema, root) for kind in kinds])


def _of_type(kind: str, schema: Schema, root: Schema) -> Strategy:
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            return _numbers(schema)
        case "string":
            return _texts(schema)
        case "array":
            least = schema.get("minItems", 0)
            most = min(schema.get("maxItems", 1000), least + _SMALL)
            return st.lists(from_schema(schema["items"], root), min_size=least, max_size=most)
        case "object":
            return _objects(schema, root)
    raise NotImplementedError(kind)


def _numbers(schema: Schema) -> Strategy:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    floats = st.floats(
        low,
        high,
        exclude_min="exclusiveMinimum" in schema,
        exclude_max="exclusiveMaximum" in schema,
        allow_nan=False,
        allow_infinity=False,
    )
    return floats | st.sampled_from([x for x in (1, 0.5, 0.1, 2, 10) if _within(x, low, high)])


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value > low) and (high is None or value < high)


def _texts(schema: Schema) -> Strategy:
    if "pattern" in schema:
        made = st.from_regex(schema["pattern"], fullmatch=True)
    else:
        made = st.sampled_from(_WORDS) | st.text(max_size=8)
    low, high = schema.get("minLength", 0), schema.get("maxLength", 10_000)
    return made.filter(lambda text: low <= len(text) <= high)


@st.composite
def _objects(draw: st.DrawFn, schema: Schema, root: Schema) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    optional = [name for name in properties if name not in required]
    chosen = draw(st.lists(st.sampled_from(optional), unique=True)) if optional else []
    made = {name: draw(from_schema(properties[name], root)) for name in (*required, *chosen)}
    for keys, values in _others(schema):
        least = max(schema.get("minProperties", 0) - len(made), 0)
        strategy = st.dictionaries(
            keys, from_schema(values, root), min_size=least, max_size=least + _SMALL
        )
        made |= draw(strategy)
    return made


def _others(schema: Schema) -> list[tuple[Strategy, Schema]]:
    patterns = schema.get("patternProperties", {})
    found = [
        (st.sampled_from(_NAMES) | st.from_regex(key, fullmatch=True), value)
        for key, value in patterns.items()
    ]
    if isinstance(schema.get("additionalProperties"), dict):
        found.append((st.sampled_from(_NAMES), schema["additionalProperties"]))
    return found


_NAMES = (
    "learning_rate", "batch_size", "optimizer", "momentum", "hidden_units", "hidden_layers",
    "activation", "dropout", "norm", "schedule", "gamma", "epochs", "seed", "gradient_clip",
)  # fmt: skip
