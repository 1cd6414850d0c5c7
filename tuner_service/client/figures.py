"""Plotly figures of a study, from what the API answers; the same charts as on the page.

Each function returns a figure as plain data, which `figure` makes a Plotly object of.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tuner_service.errors import MissingExtraError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Data = dict[str, Any]
_COLOURS: Final = {"COMPLETE": "#6a69dd", "PRUNED": "#a9a9b6", "RUNNING": "#4f46e5"}
_BEST: Final = "#d99a0b"


def figure(data: Data) -> "Figure":
    """Return the Plotly figure.

    Raises:
        MissingExtraError: Plotly is not installed here.
    """
    try:
        from plotly.graph_objects import Figure  # noqa: PLC0415 - only for who draws
    except ModuleNotFoundError as error:
        raise MissingExtraError("plots need plotly: pip install 'tuner-service[plots]'") from error
    return Figure(data)


def history(columns: Mapping[str, Any]) -> Data:
    """Values by trial, with the best so far."""
    metric, up = columns["metrics"][0], columns["directions"][0] == "maximize"
    numbers, values = columns["number"], columns["values"][0] if columns["values"] else []
    marks = [
        _points(
            state.lower(),
            [n for n, s in zip(numbers, columns["state"], strict=True) if s == state],
            [v for v, s in zip(values, columns["state"], strict=True) if s == state],
            _COLOURS[state],
        )
        for state in ("COMPLETE", "PRUNED")
        if values
    ]
    complete = [
        (n, v)
        for n, v, s in zip(numbers, values, columns["state"], strict=True)
        if s == "COMPLETE" and v is not None
    ]
    best: list[float] = []
    for _, value in complete:
        pick = max if up else min
        best.append(pick(best[-1], value) if best else value)
    line = {"color": _BEST, "shape": "hv"}
    record = {"type": "scatter", "mode": "lines", "name": "best so far", "line": line}
    marks.append({**record, "x": [n for n, _ in complete], "y": best})
    return {"data": marks, "layout": _layout("trial", metric)}


def curves(found: Mapping[str, Any]) -> Data:
    """A line for each trial by epoch, and the pruner's threshold."""
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"#{curve['number']}",
            "x": curve["steps"],
            "y": curve["values"],
            "line": {"color": _COLOURS.get(curve["state"], "#c22626"), "width": 1},
            "showlegend": False,
        }
        for curve in found["curves"]
    ]
    threshold = found["threshold"]
    if threshold is not None:
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{threshold['pruner']} pruner",
                "x": threshold["steps"],
                "y": threshold["values"],
                "line": {"color": "#c22626", "dash": "dash"},
            }
        )
    return {"data": lines, "layout": _layout("epoch", found["metric"])}


def parallel(columns: Mapping[str, Any]) -> Data:
    """Parallel coordinates of the complete trials; those without a parameter are left out of it."""
    kept = [i for i, state in enumerate(columns["state"]) if state == "COMPLETE"]
    value = {columns["metrics"][0]: columns["values"][0] if columns["values"] else []}
    dimensions = [
        _dimension(name, [column[i] for i in kept])
        for name, column in {**columns["parameters"], **value}.items()
        if column
    ]
    colour = dimensions[-1]["values"] if dimensions else []
    line = {"color": colour, "colorscale": "Viridis", "showscale": True}
    return {"data": [{"type": "parcoords", "line": line, "dimensions": dimensions}]}


def importances(shares: Mapping[str, float]) -> Data:
    """Bars of how much each parameter matters."""
    ranked = sorted(shares.items(), key=lambda item: item[1])
    bars = {"type": "bar", "orientation": "h", "marker": {"color": _COLOURS["RUNNING"]}}
    names, values = [name for name, _ in ranked], [share for _, share in ranked]
    return {"data": [{**bars, "x": values, "y": names}], "layout": _layout("importance", "")}


def _points(name: str, x: Sequence[int], y: Sequence[float | None], colour: str) -> Data:
    marker = {"color": colour, "size": 6}
    return {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": marker}


def _dimension(name: str, column: Sequence[Any]) -> Data:
    if all(isinstance(value, (int, float)) for value in column):
        return {"label": name, "values": list(column)}
    words = sorted({"n/a" if value is None else str(value) for value in column})
    places = [words.index("n/a" if value is None else str(value)) for value in column]
    return {
        "label": name,
        "values": places,
        "tickvals": list(range(len(words))),
        "ticktext": words,
    }


def _layout(x: str, y: str) -> Data:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
