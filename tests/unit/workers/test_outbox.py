"""What waits to be written, and when it must be."""

from math import inf

import pytest

from tuner_service.lifecycle.messages import Batch, Finish, HandBack, Lease, Report, Start
from workers.supervisor.outbox import MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS, Outbox

LEASE = Lease(1, 1, 1, 0, {}, None, None, None, None, 1, False)
REPORT = Report(LEASE, 1, 1, 0.5, {})
FINISH = Finish(LEASE, 1, "COMPLETE", (0.5,), {})


def test_nothing_is_due_while_nothing_waits() -> None:
    assert Outbox(flush_seconds=0.25).due == inf


def test_a_report_may_wait_and_a_finish_may_not() -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.report(REPORT, now=10.0)
    assert outbox.due == 10.25
    outbox.close(FINISH, now=10.1)
    assert outbox.due == 10.1


def test_a_trials_first_report_does_not_wait() -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.report(REPORT, now=10.0, first=True)
    assert outbox.due == 10.0


def test_the_oldest_report_decides() -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.report(REPORT, now=10.0)
    outbox.report(REPORT, now=10.2)
    assert outbox.due == 10.25


@pytest.mark.parametrize(
    ("took", "pause"),
    [
        (0.001, MIN_PAUSE_SECONDS),  # twice 1 ms is too short
        (0.010, 0.020),
        (0.500, MAX_PAUSE_SECONDS),  # a slow disk must not hold results for a second
    ],
)
def test_flushes_keep_a_pause_in_proportion_to_the_last(took: float, pause: float) -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.start(Start(LEASE, {}), now=10.0)
    outbox.take([], now=10.0)
    outbox.written(10.0 + took)
    assert outbox.due == inf
    outbox.close(FINISH, now=10.0 + took)
    assert outbox.due == pytest.approx(10.0 + took + pause)


def test_what_was_put_back_comes_before_what_came_since_and_renewals_do_not_pile_up() -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.report(REPORT, now=10.0)
    batch = outbox.take([LEASE], now=10.0)
    assert batch.renew == [LEASE]
    later = Report(LEASE, 1, 2, 0.4, {})
    outbox.report(later, now=10.1)
    outbox.put_back(batch)
    assert outbox.take([], now=10.2) == Batch(reports=[REPORT, later])


def test_a_start_can_be_taken_back() -> None:
    outbox = Outbox(flush_seconds=0.25)
    outbox.start(Start(LEASE, {}), now=10.0)
    outbox.drop_start(LEASE)
    outbox.close(HandBack(LEASE, None), now=10.0)
    assert outbox.take([], now=10.0) == Batch(hand_backs=[HandBack(LEASE, None)])
    assert len(outbox) == 0
