"""What is seen once at a trial's end, with the weights that its values are of.

The test part, and of classes what the validation part tells beyond its metrics: which rows are
taken for which class, and the threshold at which the positive class is predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from workers.training.data import Part
from workers.training.engine.lanes import Lanes
from workers.training.nets import networks
from workers.training.nets.thresholds import best_threshold
from workers.training.steps.groups import GroupSpec, dtype_of, without_dropout
from workers.training.steps.plain import forward, load_weights, precision
from workers.training.steps.step import LaneState
from workers.training.trials.evaluation import confusion, is_confused, measure, select_lanes
from workers.training.trials.runs import TrialRun

Scores = dict[str, Any]
Evaluate = Callable[[Part], Tensor]


class EndScorer:
    """Scores the runs of one group that end: names as in a trial's record."""

    def __init__(self, group: GroupSpec) -> None:
        self._group = group
        self._module: nn.Module | None = None
        self._built_from: Mapping[str, Any] | None = None

    def score(self, lanes: Lanes, ended: Sequence[int]) -> dict[int, Scores]:
        """Return the scores of runs that end in these lanes."""
        present = [lane for lane in ended if lanes.holds_result(lane)]
        scores: dict[int, Scores] = {}
        if present:

            def evaluate(part: Part) -> Tensor:
                # One pass of the whole step serves every lane whose present weights are its result.
                return select_lanes(lanes.step.evaluate(part.inputs), present)

            found = self._score([lanes[lane] for lane in present], evaluate)
            scores = dict(zip(present, found, strict=True))
        for lane in set(ended) - set(present):
            scores[lane] = self.score_weights(lanes[lane], lanes.result(lane))
        return scores

    def score_weights(self, run: TrialRun, weights: LaneState | None) -> Scores:
        """Return the scores of weights that are in no lane; none where it never trained."""
        if weights is None:
            return {}
        # A module beside the step's: putting the weights into a lane would end what trains there.
        module, group = self._build(without_dropout(run.spec.network)), self._group
        load_weights(module, weights)

        def evaluate(part: Part) -> Tensor:
            with precision(group.precision, group.device):
                return forward(module, part.inputs, group.device).unsqueeze(0)  # [1, rows, …]

        return self._score([run], evaluate)[0]

    def _score(self, runs: Sequence[TrialRun], evaluate: Evaluate) -> list[Scores]:
        data, loss = runs[0].data, self._group.loss
        scores: list[Scores] = [{} for _ in runs]
        if data.validation is not None and is_confused(data.outputs, loss):
            outputs = evaluate(data.validation)  # [len(runs), rows, …]
            _choose_thresholds(runs, outputs, data.validation)
            counts = confusion(outputs, data.validation, loss=loss, thresholds=thresholds(runs))
            _add(scores, "val", counts)
        for score, run in zip(scores, runs, strict=True):
            if data.validation is None and not isinstance(run.spec.threshold, str):
                run.threshold = run.spec.threshold
            if run.threshold is not None:
                score["threshold"] = run.threshold
        if data.test is not None:
            outputs = evaluate(data.test)
            measured = measure(
                outputs,
                data.test,
                loss=loss,
                metrics=[run.metrics for run in runs],
                thresholds=thresholds(runs),
            )
            for score, one in zip(scores, measured, strict=True):
                score |= {f"test_{name}": value for name, value in one.items()}
            _add(
                scores,
                "test",
                confusion(outputs, data.test, loss=loss, thresholds=thresholds(runs)),
            )
        return scores

    def _build(self, network: Mapping[str, Any]) -> nn.Module:
        if self._module is None or self._built_from != network:
            group = self._group
            module = networks.build(network, inputs=group.inputs, outputs=group.outputs)
            self._module = module.to(device=group.device, dtype=dtype_of(group.precision))
            self._built_from = network
        return self._module


def _choose_thresholds(runs: Sequence[TrialRun], outputs: Tensor, part: Part) -> None:
    for lane, run in enumerate(runs):
        if isinstance(run.spec.threshold, str):
            run.threshold = best_threshold(outputs[lane], part.targets, run.spec.threshold)
        else:
            run.threshold = run.spec.threshold


def thresholds(runs: Sequence[TrialRun]) -> list[float | None]:
    """Return where each run takes a row for the positive class; None: where it is likelier."""
    return [run.threshold for run in runs]


def _add(scores: list[Scores], part: str, counts: list[list[list[int]]] | None) -> None:
    for score, one in zip(scores, counts or [], strict=False):
        score[f"{part}_confusion"] = one
