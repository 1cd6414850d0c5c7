"""Which files workers do not offer as modules, and why.

Revision 0004, after 0003. From here on a study may also be in the state `deleted`, in which its
rows are removed in parts: software of an earlier revision does not know it, and must not run
beside.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tuner_refused_modules",
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("file", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["worker_id"],
            ["tuner_workers.id"],
            name=op.f("fk_tuner_refused_modules_worker_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("worker_id", "file", name=op.f("pk_tuner_refused_modules")),
    )


def downgrade() -> None:
    op.drop_table("tuner_refused_modules")
