"""Alembic migrations of our tables (`tuner_*`); Optuna looks after its own."""
