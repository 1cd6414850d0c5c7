"""Which modules a study needs, so that workers without them leave its slots alone.

Revision 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# The networks that needed no module before this revision.
_BUILT_IN = ("mlp", "cnn")


def upgrade() -> None:
    table = op.create_table(
        "tuner_study_modules",
        sa.Column("study_id", _ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["tuner_studies.id"],
            name=op.f("fk_tuner_study_modules_study_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "name", name=op.f("pk_tuner_study_modules")),
    )
    studies = sa.table("tuner_studies", sa.column("id"), sa.column("definition", sa.JSON()))
    network = studies.c.definition["network"]["type"].as_string()
    op.execute(
        table.insert().from_select(
            ["study_id", "name"], sa.select(studies.c.id, network).where(network.not_in(_BUILT_IN))
        )
    )


def downgrade() -> None:
    op.drop_table("tuner_study_modules")
