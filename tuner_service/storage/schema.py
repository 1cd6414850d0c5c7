"""Our tables, beside Optuna's in the same database.

Every table has the prefix `tuner_`; Alembic's version table is `tuner_alembic_version`, since
Optuna owns `alembic_version`. Times are seconds since the epoch on the database's clock. A study
of ours and its Optuna study share name and life; `tuner_trials.trial_id` is Optuna's `trial_id`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# The state of a study that was deleted, until the last of its rows is gone too. No answer has it.
GONE = "deleted"

# SQLite numbers rows by itself only in a column of the exact type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")

studies = Table(
    "tuner_studies",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("public_id", String(32), nullable=False, unique=True),
    Column("name", String(256), nullable=False, unique=True),
    Column("optuna_study_id", Integer, nullable=False, unique=True),
    Column("definition", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=True),  # why it ended or waits, in a sentence
    Column("revision", _Id, nullable=False, server_default=text("1")),
    Column("device", String(16), nullable=False),  # auto | cpu | cuda
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("parallel_trials", Integer, nullable=False),
    Column("budget_trials", Integer, nullable=False),
    Column("max_failures", Integer, nullable=False),
    Column("timeout_seconds", Double, nullable=True),
    Column("trial_timeout_seconds", Double, nullable=True),
    Column("tags", JSON, nullable=False),
    Column("owner", String(64), nullable=True),  # the API key's id
    Column("created_at", Double, nullable=False),
    Column("started_at", Double, nullable=True),
    Column("finished_at", Double, nullable=True),
    Column("paused_at", Double, nullable=True),
    Column("paused_seconds", Double, nullable=False, server_default=text("0")),
    # Counters kept by the same transactions that move the slots, so that a list of studies costs
    # what its page costs, not what the studies hold.
    Column("slots_open", Integer, nullable=False),
    Column("slots_leased", Integer, nullable=False, server_default=text("0")),
    Column("slots_done", Integer, nullable=False, server_default=text("0")),
    Column("slots_failed", Integer, nullable=False, server_default=text("0")),
    Column("slots_cancelled", Integer, nullable=False, server_default=text("0")),
    Column("trials_pruned", Integer, nullable=False, server_default=text("0")),
    Column("best_trial_id", Integer, nullable=True),  # single objective, feasible, COMPLETE
    Column("best_value", Double, nullable=True),
    Index("ix_tuner_studies_claimable", "state", "priority"),
    Index("ix_tuner_studies_created", "created_at"),
    # Never a deleted study's or slot's id again: a zombie's lease must not fit another slot.
    sqlite_autoincrement=True,
)

# What a worker must have to run a study, beside a device: the modules that its definition names.
study_modules = Table(
    "tuner_study_modules",
    metadata,
    Column(
        "study_id",
        _Id,
        ForeignKey("tuner_studies.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", String(128), primary_key=True),
)

slots = Table(
    "tuner_slots",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("tuner_studies.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # open | leased | done | failed | cancelled
    Column("parameters", JSON, nullable=True),  # fixed at submit (grid, random) or first start
    Column("enqueued", JSON, nullable=True),  # the user's partial point, if any
    Column("fencing_token", Integer, nullable=False, server_default=text("0")),
    Column("worker_id", String(64), nullable=True),
    Column("lease_expires_at", Double, nullable=True),
    Column("trial_id", Integer, nullable=True),  # the running, handed-back or final trial
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("blamed_attempts", Integer, nullable=False, server_default=text("0")),
    Column("shared_deaths", Integer, nullable=False, server_default=text("0")),
    Column("lost_leases", Integer, nullable=False, server_default=text("0")),
    Column("exclusive", Boolean, nullable=False, server_default=text("false")),
    Column("checkpoint_step", Integer, nullable=True),  # a checkpoint exists up to this step
    Column("not_before", Double, nullable=False, server_default=text("0")),
    Column("failure_kind", String(32), nullable=True),
    Column("failure_message", Text, nullable=True),
    Column("stop_trial_id", Integer, nullable=True),  # the trial that somebody asked to stop
    UniqueConstraint("study_id", "number"),
    Index("ix_tuner_slots_open", "study_id", "state", "number"),
    Index("ix_tuner_slots_leases", "state", "lease_expires_at"),
    Index(
        "ix_tuner_slots_handed_back",
        "study_id",
        sqlite_where=text("state = 'open' AND trial_id IS NOT NULL"),
        postgresql_where=text("state = 'open' AND trial_id IS NOT NULL"),
    ),
    Index(
        "ix_tuner_slots_exclusive",
        "study_id",
        sqlite_where=text("state = 'open' AND exclusive"),
        postgresql_where=text("state = 'open' AND exclusive"),
    ),
    sqlite_autoincrement=True,
)

trials = Table(
    "tuner_trials",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("study_id", _Id, ForeignKey("tuner_studies.id", ondelete="CASCADE"), nullable=False),
    Column("slot_id", _Id, ForeignKey("tuner_slots.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # Optuna's trial number
    Column("attempt", Integer, nullable=False),
    Column("retry_of", Integer, nullable=True),  # the trial number of the attempt before
    Column("state", String(16), nullable=False),  # Optuna's word, kept for filtering and sorting
    Column("value", Double, nullable=True),
    Column("worker", String(64), nullable=True),
    Column("device", String(64), nullable=True),
    Column("backend", String(16), nullable=True),  # native | compiled | traced | plain
    Column("backend_reason", Text, nullable=True),
    Column("group_key", String(64), nullable=True),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double, nullable=True),
    Column("failure_kind", String(32), nullable=True),
    Column("failure_message", Text, nullable=True),
    Column("failure_traceback", Text, nullable=True),
    Column("record", JSON, nullable=True),  # test metrics, parameter count, versions, hashes, …
    Column("model_path", Text, nullable=True),  # relative to the data directory; null: not kept
    UniqueConstraint("study_id", "number"),
    Index("ix_tuner_trials_state", "study_id", "state", "number"),
    Index("ix_tuner_trials_value", "study_id", "value"),
    Index("ix_tuner_trials_slot", "slot_id"),
)

epochs = Table(
    "tuner_epochs",
    metadata,
    Column(
        "trial_id",
        Integer,
        ForeignKey("tuner_trials.trial_id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("record", JSON, nullable=False),  # losses, metrics, learning_rate, seconds
)

idempotency_keys = Table(
    "tuner_idempotency_keys",
    metadata,
    Column("owner", String(64), primary_key=True),  # "" without API keys
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("study_id", _Id, nullable=False),
    Column("created_at", Double, nullable=False),
)

workers = Table(
    "tuner_workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queue", String(16), nullable=False),  # cpu | cuda
    Column("device", String(128), nullable=True),
    Column("version", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # idle | busy | stopping
    Column("lanes", Integer, nullable=False, server_default=text("0")),
    Column("current_trials", JSON, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Index("ix_tuner_workers_heartbeat", "heartbeat_at"),
)

modules = Table(
    "tuner_modules",
    metadata,
    Column(
        "worker_id",
        String(64),
        ForeignKey("tuner_workers.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("name", String(128), primary_key=True),
    Column("description", JSON, nullable=False),  # parameters of build(), what else is defined
    Column("source_hash", String(64), nullable=False),
)

refused_modules = Table(
    "tuner_refused_modules",
    metadata,
    Column(
        "worker_id",
        String(64),
        ForeignKey("tuner_workers.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("file", String(128), primary_key=True),
    Column("reason", Text, nullable=False),
)

api_keys = Table(
    "tuner_api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=True),
    Column("revoked_at", Double, nullable=True),
)
