"""A trial's last step is read from its epochs.

Revision 0003, after 0002. Keeping it up to date cost every flush an update of every running trial.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not as a batch: rebuilding the table would, in SQLite, delete the epochs that refer to it.
    op.drop_column("tuner_trials", "last_step")


def downgrade() -> None:
    op.add_column("tuner_trials", sa.Column("last_step", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE tuner_trials SET last_step = (SELECT max(step) FROM tuner_epochs "
        "WHERE tuner_epochs.trial_id = tuner_trials.trial_id)"
    )
