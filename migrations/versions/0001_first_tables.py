"""The first tables.

Revision 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "tuner_api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_tuner_api_keys_hash")),
    )
    op.create_table(
        "tuner_idempotency_keys",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_tuner_idempotency_keys")),
    )
    op.create_table(
        "tuner_studies",
        sa.Column("id", _ID, nullable=False),
        sa.Column("public_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("optuna_study_id", sa.Integer(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "revision",
            _ID,
            server_default=sa.text("1"),
            nullable=False,
        ),
        sa.Column("device", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("parallel_trials", sa.Integer(), nullable=False),
        sa.Column("budget_trials", sa.Integer(), nullable=False),
        sa.Column("max_failures", sa.Integer(), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("trial_timeout_seconds", sa.Double(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("paused_at", sa.Double(), nullable=True),
        sa.Column("paused_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("slots_open", sa.Integer(), nullable=False),
        sa.Column("slots_leased", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("slots_done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("slots_failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("slots_cancelled", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("trials_pruned", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("best_trial_id", sa.Integer(), nullable=True),
        sa.Column("best_value", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_tuner_studies_name")),
        sa.UniqueConstraint("optuna_study_id", name=op.f("uq_tuner_studies_optuna_study_id")),
        sa.UniqueConstraint("public_id", name=op.f("uq_tuner_studies_public_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tuner_studies_claimable", "tuner_studies", ["state", "priority"])
    op.create_index("ix_tuner_studies_created", "tuner_studies", ["created_at"])

    op.create_table(
        "tuner_workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=True),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lanes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("current_trials", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_workers")),
    )
    op.create_index("ix_tuner_workers_heartbeat", "tuner_workers", ["heartbeat_at"])

    op.create_table(
        "tuner_modules",
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.Column("source_hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["worker_id"],
            ["tuner_workers.id"],
            name=op.f("fk_tuner_modules_worker_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("worker_id", "name", name=op.f("pk_tuner_modules")),
    )
    op.create_table(
        "tuner_slots",
        sa.Column("id", _ID, nullable=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=True),
        sa.Column("enqueued", sa.JSON(), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("trial_id", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("blamed_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("shared_deaths", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lost_leases", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("run_alone", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("checkpoint_step", sa.Integer(), nullable=True),
        sa.Column("not_before", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("failure_kind", sa.String(length=32), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["tuner_studies.id"],
            name=op.f("fk_tuner_slots_study_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_slots")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_tuner_slots_study_id_number")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_tuner_slots_handed_back",
        "tuner_slots",
        ["study_id"],
        sqlite_where=sa.text("state = 'open' AND trial_id IS NOT NULL"),
        postgresql_where=sa.text("state = 'open' AND trial_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tuner_slots_alone",
        "tuner_slots",
        ["study_id"],
        sqlite_where=sa.text("state = 'open' AND run_alone"),
        postgresql_where=sa.text("state = 'open' AND run_alone"),
    )
    op.create_index("ix_tuner_slots_leases", "tuner_slots", ["state", "lease_expires_at"])
    op.create_index("ix_tuner_slots_open", "tuner_slots", ["study_id", "state", "number"])

    op.create_table(
        "tuner_trials",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("slot_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("retry_of", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("worker", sa.String(length=64), nullable=True),
        sa.Column("device", sa.String(length=64), nullable=True),
        sa.Column("rung", sa.String(length=16), nullable=True),
        sa.Column("rung_reason", sa.Text(), nullable=True),
        sa.Column("group_key", sa.String(length=64), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("last_step", sa.Integer(), nullable=True),
        sa.Column("failure_kind", sa.String(length=32), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("failure_traceback", sa.Text(), nullable=True),
        sa.Column("record", sa.JSON(), nullable=True),
        sa.Column("model_path", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["slot_id"],
            ["tuner_slots.id"],
            name=op.f("fk_tuner_trials_slot_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["tuner_studies.id"],
            name=op.f("fk_tuner_trials_study_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_tuner_trials")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_tuner_trials_study_id_number")),
    )
    op.create_index("ix_tuner_trials_slot", "tuner_trials", ["slot_id"])
    op.create_index("ix_tuner_trials_state", "tuner_trials", ["study_id", "state", "number"])
    op.create_index("ix_tuner_trials_value", "tuner_trials", ["study_id", "value"])

    op.create_table(
        "tuner_epochs",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["tuner_trials.trial_id"],
            name=op.f("fk_tuner_epochs_trial_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "step", name=op.f("pk_tuner_epochs")),
    )


def downgrade() -> None:
    for table in (
        "tuner_epochs",
        "tuner_trials",
        "tuner_slots",
        "tuner_modules",
        "tuner_workers",
        "tuner_studies",
        "tuner_idempotency_keys",
        "tuner_api_keys",
    ):
        op.drop_table(table)
