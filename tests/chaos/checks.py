"""What must hold at a study's end, as a client sees it: I1 to I5 and I9 over REST."""

from collections import Counter
from typing import Any

ENDED = ("COMPLETE", "PRUNED")


def violations(study: dict[str, Any], trials: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each promise that is broken."""
    name, progress = study["name"], study["progress"]
    results = Counter(trial["slot"] for trial in trials if trial["state"] in ENDED)
    found = [f"slot {slot} has {n} results" for slot, n in results.items() if n > 1]
    if len(results) != progress["done"]:
        found.append(f"{len(results)} results, but {progress['done']} slots done")
    if progress["leased"] or (study["state"] == "completed" and progress["open"]):
        found.append(f"the study is {study['state']}, but its slots are {progress}")
    running = [trial["number"] for trial in trials if trial["state"] == "RUNNING"]
    if running:
        found.append(f"the study is {study['state']}, but trials {running} are RUNNING")
    parts = ("open", "leased", "done", "failed", "cancelled")
    if sum(progress[part] for part in parts) != progress["total"]:
        found.append(f"the slots do not add up: {progress}")
    found += _repeated_points(study, trials)
    found += _good_moods(trials)
    return [f"{name}: {what}" for what in found]


def _repeated_points(study: dict[str, Any], trials: list[dict[str, Any]]) -> list[str]:
    """Slots keep their parameters over all attempts; a grid's differ from each other."""
    points: dict[int, dict[str, Any]] = {}
    found = []
    for trial in trials:
        first = points.setdefault(trial["slot"], trial["parameters"])
        if first != trial["parameters"]:
            found.append(f"slot {trial['slot']} changed from {first} to {trial['parameters']}")
    if study["definition"]["sampler"]["type"] == "grid":
        counts = Counter(tuple(sorted(point.items())) for point in points.values())
        found += [f"point {point} in {n} slots" for point, n in counts.items() if n > 1]
    return found


def _good_moods(trials: list[dict[str, Any]]) -> list[str]:
    """A network that hangs, exits, dies or diverges has no result that counts."""
    bad = [
        (trial["number"], trial["parameters"]["mood"])
        for trial in trials
        if trial["state"] == "COMPLETE"
        and trial["parameters"].get("mood", "calm") not in ("calm", "mild")
    ]
    return [f"trials that are COMPLETE in a mood: {bad}"] if bad else []
