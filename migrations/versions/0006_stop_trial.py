"""Which trial of a slot somebody has asked to stop.

Revision 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tuner_slots", sa.Column("stop_trial_id", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("tuner_slots", "stop_trial_id")
