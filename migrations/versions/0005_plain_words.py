"""Columns say what they hold: `backend`, not `rung`; `fencing_token`, not `epoch`; and so on.

Revision 0005, after 0004. Names only; no value changes. Optuna's attribute of the same name moves
with them, for the trials of our studies.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RENAMED = (
    ("tuner_slots", "epoch", "fencing_token"),
    ("tuner_slots", "owner", "worker_id"),
    ("tuner_slots", "run_alone", "exclusive"),
    ("tuner_trials", "rung", "backend"),
    ("tuner_trials", "rung_reason", "backend_reason"),
)


def upgrade() -> None:
    op.drop_index("ix_tuner_slots_alone", table_name="tuner_slots")
    for table, old, new in RENAMED:
        _rename(table, old, new)
    _index("ix_tuner_slots_exclusive", "exclusive")
    _rename_attribute("rung", "backend")


def downgrade() -> None:
    op.drop_index("ix_tuner_slots_exclusive", table_name="tuner_slots")
    for table, old, new in RENAMED:
        _rename(table, new, old)
    _index("ix_tuner_slots_alone", "run_alone")
    _rename_attribute("backend", "rung")


def _rename(table: str, old: str, new: str) -> None:
    # Not `alter_column`: on SQLite that copies the table, and loses its AUTOINCREMENT.
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")


def _index(name: str, column: str) -> None:
    where = sa.text(f"state = 'open' AND {column}")
    op.create_index(name, "tuner_slots", ["study_id"], sqlite_where=where, postgresql_where=where)


def _rename_attribute(old: str, new: str) -> None:
    op.execute(
        sa.text(
            "UPDATE trial_user_attributes SET key = :new WHERE key = :old "
            "AND trial_id IN (SELECT trial_id FROM tuner_trials)"
        ).bindparams(old=old, new=new)
    )
