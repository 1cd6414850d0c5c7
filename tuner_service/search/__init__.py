"""Search: what proposes parameters and what stops bad trials early."""

from tuner_service.search.study_search import StudySearch

__all__ = ["StudySearch"]
