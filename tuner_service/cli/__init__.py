"""The command `tuner`: studies over REST, and the parts of the service as processes."""

from tuner_service.cli.app import main, run

__all__ = ["main", "run"]
