"""The test part, seen once at a trial's end, with the weights that its values are of."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from workers.training.data import Part
from workers.training.engine.lanes import Lanes
from workers.training.nets import networks
from workers.training.steps.groups import GroupSpec, dtype_of, without_dropout
from workers.training.steps.plain import forward, load_weights, precision
from workers.training.steps.step import LaneState
from workers.training.trials.evaluation import confusion, measure, select_lanes
from workers.training.trials.runs import TrialRun

Scores = dict[str, Any]


class TestScorer:
    """Measures the runs of one group on their test part; no test part, no scores."""

    def __init__(self, group: GroupSpec) -> None:
        self._group = group
        self._module: nn.Module | None = None
        self._built_from: Mapping[str, Any] | None = None

    def score(self, lanes: Lanes, ended: Sequence[int]) -> dict[int, Scores]:
        """Return the scores of runs that end in these lanes."""
        present = [lane for lane in ended if lanes.holds_result(lane)]
        scores = self._score_present(lanes, present)
        for lane in set(ended) - set(present):
            scores[lane] = self.score_weights(lanes[lane], lanes.result(lane))
        return scores

    def score_weights(self, run: TrialRun, weights: LaneState | None) -> Scores:
        """Return the scores of weights that are in no lane; none where it never trained."""
        part = run.data.test
        if part is None or weights is None:
            return {}
        # A module beside the step's: putting the weights into a lane would end what trains there.
        module = self._build(without_dropout(run.spec.network))
        load_weights(module, weights)
        with precision(self._group.precision, self._group.device):
            outputs = forward(module, part.inputs, self._group.device)  # [rows, …]
        return self._measure(outputs.unsqueeze(0), part, [run])[0]

    def _score_present(self, lanes: Lanes, ended: Sequence[int]) -> dict[int, Scores]:
        """One pass of the whole step serves every lane whose present weights are its result."""
        if not ended:
            return {}
        runs = [lanes[lane] for lane in ended]
        part = runs[0].data.test
        if part is None:
            return {lane: {} for lane in ended}
        outputs = select_lanes(lanes.step.evaluate(part.inputs), ended)  # [len(ended), rows, …]
        return dict(zip(ended, self._measure(outputs, part, runs), strict=True))

    def _measure(self, outputs: Tensor, part: Part, runs: Sequence[TrialRun]) -> list[Scores]:
        metrics = [run.metrics for run in runs]
        loss = self._group.loss
        scores: list[Scores] = [*measure(outputs, part, loss=loss, metrics=metrics)]
        for one, counts in zip(scores, confusion(outputs, part, loss=loss) or [], strict=False):
            one["confusion"] = counts
        return scores

    def _build(self, network: Mapping[str, Any]) -> nn.Module:
        if self._module is None or self._built_from != network:
            group = self._group
            module = networks.build(network, inputs=group.inputs, outputs=group.outputs)
            self._module = module.to(device=group.device, dtype=dtype_of(group.precision))
            self._built_from = network
        return self._module
