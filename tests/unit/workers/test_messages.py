"""Messages on the wire: each comes out as it went in, and nothing else does."""

import math
from typing import Any

import pytest

from workers.protocol.codec import (
    COMMANDS,
    LOOP_COMMANDS,
    LOOP_MESSAGES,
    TRAINER_MESSAGES,
    Codec,
)
from workers.protocol.messages import (
    Alive,
    Allow,
    Checkpointed,
    Events,
    Failed,
    Finished,
    ForgetResults,
    ProbePoints,
    ProbeRequest,
    Ready,
    Reported,
    RunFailure,
    RunId,
    Shutdown,
    Start,
    Started,
    Stop,
    Stopped,
    TrialStart,
    Working,
)
from workers.protocol.user_loop import (
    AllowStep,
    LoopFailed,
    LoopFinished,
    LoopOrder,
    LoopPruned,
    LoopReport,
    LoopSaved,
    LoopStarted,
    LoopStopped,
    StopLoop,
)

RUN = RunId(7)
START = TrialStart(
    run=RUN, number=0, study=1, spec={"network": {"units": 3}, "large": 10**30}, checkpoint="c",
    resume=None, model=None, keep_models=0, prunable=True, exclusive=False, log=None,
)  # fmt: skip
EVENTS = [
    Started(run=RUN, group="g", backend="plain"),
    Reported(run=RUN, step=1, value=None, record={"val_loss": 0.5, "note": "ü", "none": None}),
    Checkpointed(run=RUN, step=1),
    Working(run=RUN),
    Finished(run=RUN, values=[1.0, 2.0], step=3, model="m", record={"confusion": [[1, 2]]}),
    Stopped(run=RUN, mode="prune", step=2, values=[0.1]),
    Failed(run=RUN, failure=RunFailure("user_code", "no", 2, "traceback"), sole_suspect=False),
]
ORDER = LoopOrder(
    module="m.py", parameters={"x": 1}, objectives=["x"], device="cpu", seed=2, threads=1,
    checkpoint_dir="c", report_log="r", prunable=False, reported=None, model=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        *((COMMANDS, one) for one in (
            Start([START]), Stop([(RUN, "checkpoint")]), Allow([(RUN, 3)]),
            ProbePoints(1, [{}]), ForgetResults(1), Shutdown(),
        )),
        *((TRAINER_MESSAGES, one) for one in (
            Ready(pid=1, device="cpu", queue="cpu", versions={"torch": "2"}, lanes=8),
            Events(EVENTS), ProbeRequest(1), Alive(busy_seconds=1, turn=[RUN], memory_bytes=9),
        )),
        *((LOOP_COMMANDS, one) for one in (ORDER, StopLoop(), AllowStep(2))),
        *((LOOP_MESSAGES, one) for one in (
            LoopStarted("abc"), LoopReport(step=1, values=[1.0], record={"n": 1}, saved=True),
            LoopSaved(), LoopFinished([1.0], {}), LoopPruned({}), LoopStopped({}, saved=False),
            LoopFailed(kind="diverged", message="no", step=None),
        )),
    ],
    ids=lambda value: getattr(value, "type", ""),
)  # fmt: skip
def test_a_message_comes_out_as_it_went_in(codec: Codec[Any], message: Any) -> None:
    line = codec.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert codec.decode(line) == message


def test_a_number_that_is_none_stays_one() -> None:
    line = TRAINER_MESSAGES.encode(
        Events([Finished(run=RUN, values=[math.nan, math.inf], record={"x": -math.inf})])
    )
    said = TRAINER_MESSAGES.decode(line)
    assert isinstance(said, Events)
    (event,) = said.events
    assert isinstance(event, Finished)
    assert math.isnan(event.values[0])
    assert (event.values[1], event.record) == (math.inf, {"x": -math.inf})


def test_text_of_user_code_that_utf8_does_not_have_is_replaced() -> None:
    failure = RunFailure("user_code", "no file \udcff", 1)
    said = TRAINER_MESSAGES.decode(
        TRAINER_MESSAGES.encode(Events([Failed(run=RUN, failure=failure)]))
    )
    assert isinstance(said, Events)
    assert said.events == [Failed(run=RUN, failure=RunFailure("user_code", "no file ?", 1))]


def test_a_command_with_such_text_raises_instead_of_naming_another_file() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        COMMANDS.encode(ProbePoints(1, [{"path": "\udcff"}]))


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1]",
        b"{}",
        b'{"type": "unknown"}',
        b'{"type": "start", "trials": []}',  # of the other direction
        b'{"type": "probe_request"}',
        b'{"type": "probe_request", "study": "1"}',
        b'{"type": "events", "events": [{"type": "reported", "run": 1}]}',
    ],
)
def test_what_is_no_message_raises(line: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        TRAINER_MESSAGES.decode(line)
