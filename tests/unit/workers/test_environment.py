"""What of a worker's environment reaches the trainer."""

import pytest

from workers.supervisor.environment import is_secret, scrubbed


@pytest.mark.parametrize(
    "name",
    [
        "TUNER_DATABASE_URL",
        "TUNER_BROKER_URL",
        "TUNER_API_KEY",
        "PGPASSWORD",
        "PGHOST",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "MY_PASSWORD",
        "DATABASE_URL",
        "SENTRY_DSN",
        "OPENAI_API_KEY",
    ],
)
def test_secrets_do_not_reach_the_trainer(name: str) -> None:
    assert is_secret(name)
    assert name not in scrubbed({name: "x"}, threads=1)


@pytest.mark.parametrize("name", ["PATH", "HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "CC"])
def test_what_torch_needs_reaches_the_trainer(name: str) -> None:
    assert scrubbed({name: "x"}, threads=1)[name] == "x"


def test_thread_counts_are_set_unless_somebody_chose() -> None:
    environment = scrubbed({"MKL_NUM_THREADS": "4"}, threads=1)
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("1", "4")
