"""Failures by what they say, each with the region of the search space that explains it.

A region is grown as a decision tree grows one branch: of all conditions on one parameter the one is
taken that tells the group best from all other trials, then the next within what is left, up to
`MOST_SIDES` of them. A condition must lose few of the group and leave out many of the others.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tuner_service.reads.charts import FailureGroup, Failures, RegionSide
from tuner_service.reads.columns import TrialColumns

MOST_GROUPS: Final = 20
MOST_SIDES: Final = 3
FEWEST: Final = 3  # failures of which a region says anything
LEAST_GAIN: Final = 0.1  # of recall minus false alarms
MOST_CHOICES: Final = 24
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Cut:
    side: RegionSide
    inside: Mask
    gain: float


def read_failures(columns: TrialColumns) -> Failures:
    """Group the study's failed (and diverged) trials by message."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, kind in enumerate(columns.failure):
        if kind not in (None, "cancelled"):
            groups[kind or "", _first_line(columns.message[place])].append(place)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:MOST_GROUPS]
    return Failures(
        study=columns.study,
        revision=columns.revision,
        trials=len(columns),
        failed=sum(map(len, groups.values())),
        groups=[_group(columns, *said, places) for said, places in largest],
    )


def _first_line(message: str | None) -> str:
    return next(iter((message or "").splitlines()), "")


def _group(columns: TrialColumns, kind: str, message: str, places: Sequence[int]) -> FailureGroup:
    failed = np.zeros(len(columns), bool)
    failed[list(places)] = True
    sides, region = _region(columns, failed)
    return FailureGroup(
        kind=kind,
        message=message,
        count=len(places),
        numbers=[columns.number[place] for place in places[:10]],
        region=sides,
        inside=int((failed & region).sum()),
        region_trials=int(region.sum()),
    )


def _region(columns: TrialColumns, failed: Mask) -> tuple[list[RegionSide], Mask]:
    """Return the conditions of the group's region, and which trials lie in it."""
    region = np.ones(len(columns), bool)
    sides: dict[tuple[str, bool], RegionSide] = {}
    ended = np.array([state != "RUNNING" for state in columns.state])
    if failed.sum() < FEWEST:
        return [], region & ended
    region &= ended
    for _ in range(MOST_SIDES):
        cuts = [
            cut
            for name, column in columns.parameters.items()
            for cut in _cuts(name, column, failed & region, region)
        ]
        best = max(cuts, key=lambda cut: cut.gain, default=None)
        if best is None or best.gain < LEAST_GAIN:
            break
        region = region & best.inside
        sides[best.side.parameter, best.side.low is None] = best.side
    return list(sides.values()), region


def _cuts(name: str, column: Sequence[Any], failed: Mask, region: Mask) -> list[_Cut]:
    present = np.array([value is not None for value in column])
    sample = next((value for value in column if value is not None), None)
    if isinstance(sample, (int, float)) and not isinstance(sample, bool):
        numbers = np.array([np.nan if value is None else value for value in column], float)
        found = _number_cuts(name, numbers, failed, region & present)
    else:
        found = _choice_cuts(name, column, failed, region)
    return found


def _number_cuts(name: str, numbers: NDArray[np.float64], failed: Mask, there: Mask) -> list[_Cut]:
    """Return the best `x <= bound` and the best `x >= bound`."""
    values, hits = numbers[there], failed[there]
    all_failed, others = failed.sum(), (~failed & there).sum()
    if not len(values) or not all_failed or not others:
        return []
    order = np.argsort(values, kind="stable")
    values, hits = values[order], hits[order]
    hit, passed = np.cumsum(hits) / all_failed, np.cumsum(~hits) / others
    last = np.append(values[1:] != values[:-1], True)  # of equal values only the last is a bound
    below = np.where(last, hit - passed, -1.0)
    first = np.append(True, values[1:] != values[:-1])
    share = hits.sum() / all_failed
    above = np.where(
        first, share - np.append(0.0, hit[:-1]) - (1 - np.append(0.0, passed[:-1])), -1.0
    )
    low, high = int(above.argmax()), int(below.argmax())
    return [
        _Cut(
            RegionSide(parameter=name, high=float(values[high])),
            there & (numbers <= values[high]),
            float(below[high]),
        ),
        _Cut(
            RegionSide(parameter=name, low=float(values[low])),
            there & (numbers >= values[low]),
            float(above[low]),
        ),
    ]


def _choice_cuts(name: str, column: Sequence[Any], failed: Mask, region: Mask) -> list[_Cut]:
    """Return the one set of choices in which failures are more frequent than elsewhere."""
    choices = list(dict.fromkeys(column))
    if len(choices) < 2 or len(choices) > MOST_CHOICES:
        return []
    codes = {choice: code for code, choice in enumerate(choices)}
    places = np.array([codes[value] for value in column])
    all_failed, others = failed.sum(), (~failed & region).sum()
    if not all_failed or not others:
        return []
    hit = np.bincount(places[failed], minlength=len(choices)) / all_failed
    passed = np.bincount(places[~failed & region], minlength=len(choices)) / others
    kept = [code for code in range(len(choices)) if hit[code] > passed[code]]
    side = RegionSide(parameter=name, choices=[choices[code] for code in kept])
    gain = float((hit[kept] - passed[kept]).sum())
    return [_Cut(side, region & np.isin(places, kept), gain)]
