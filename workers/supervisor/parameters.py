"""Parameters for held runs: asked of the sampler as late as possible, when it knows the most."""

from tuner_service.errors import UnavailableError
from tuner_service.lifecycle.messages import Start
from workers.supervisor import outcomes
from workers.supervisor.held_runs import LeasedTrial, Phase
from workers.supervisor.session import ServeSession
from workers.supervisor.store import SlotStore
from workers.supervisor.studies import STUDY_ERRORS

PRUNE_REFRESH_SECONDS = 1.0


def prepare_runs(session: ServeSession, store: SlotStore, *, capacity: int) -> None:
    """Give parameters to held runs and have their trials created.

    A run whose parameters must be asked waits until fewer than `capacity` runs have theirs.

    Raises:
        UnavailableError: The database is away.
    """
    free = capacity - len(session.held.of(Phase.STARTING, Phase.READY, Phase.SENT))
    for run in session.held.of(Phase.HELD):
        if run.parameters is None and free <= 0:
            continue
        free -= run.parameters is None
        _prepare(session, store, run)


def refresh_pruners(session: ServeSession, store: SlotStore) -> None:
    """Let pruners see what other workers' trials report.

    Raises:
        UnavailableError: The database is away.
    """
    for study in {id(run.study): run.study for run in session.held}.values():
        if study.prunes and session.now() - study.seen_at > PRUNE_REFRESH_SECONDS:
            study.refresh(store, session.now())


def _prepare(session: ServeSession, store: SlotStore, run: LeasedTrial) -> None:
    study = run.study
    try:
        if run.parameters is None or study.prunes:
            study.refresh(store, session.now())
        parameters = study.ask(run.lease) if run.parameters is None else run.parameters
        run.prepare(parameters, study.spec(parameters))
    except UnavailableError:
        raise
    except STUDY_ERRORS as error:
        said = "No parameters could be found for the trial"
        session.close(run, outcomes.unsearchable(run, said, error))
        return
    if run.trial_id is not None:
        run.ready()
    else:
        run.starting()
        start = Start(run.lease, parameters, device=session.device)
        session.outbox.start(start, session.now())
