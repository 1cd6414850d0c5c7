"""Columns of a study as they are shown: all trials, or a part of many that tells the same."""

from tuner_service.reads.charts import ColumnsView
from tuner_service.reads.columns import TrialColumns
from tuner_service.reads.filters import matching


def shown(columns: TrialColumns, most: int, text: str = "") -> ColumnsView:
    """Return the columns of at most `most` trials that fit a filter.

    Of more, the best hundred, all that run, and the rest at even distances are taken.
    """
    places = matching(columns, text)
    picked = places if len(places) <= most else _part(columns, places, most)
    seconds = [
        None if (end := columns.finished[place]) is None else end - columns.started[place]
        for place in picked
    ]
    return ColumnsView(
        study=columns.study,
        revision=columns.revision,
        total=len(places),
        metrics=[one.metric for one in columns.definition.objective],
        directions=[one.direction for one in columns.definition.objective],
        number=[columns.number[place] for place in picked],
        state=[columns.state[place] for place in picked],
        values=[[column[place] for place in picked] for column in columns.values],
        seconds=seconds,
        failure=[columns.failure[place] for place in picked],
        parameters={
            name: [column[place] for place in picked] for name, column in columns.parameters.items()
        },
    )


def _part(columns: TrialColumns, places: list[int], most: int) -> list[int]:
    best = columns.best(min(100, most), places)
    fitting = set(places) if len(places) < len(columns) else columns.unfinished.values()
    running = [place for place in columns.unfinished.values() if place in fitting]
    kept = dict.fromkeys([*best, *running][:most])
    room = most - len(kept)
    if room:
        kept |= dict.fromkeys(places[:: -(-len(places) // room)])
    return sorted(kept)
