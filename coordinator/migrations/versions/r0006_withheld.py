"""Effects of parked transactions that may not have left (saga_processors.processor, ``_republish``)."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE public.withheld (
            partition smallint NOT NULL,
            "offset" bigint NOT NULL,
            reason text NOT NULL,
            PRIMARY KEY (partition, "offset")
        )
    """)
    op.execute(
        "COMMENT ON TABLE public.withheld IS "
        "'journal rows whose effects have perhaps not left; they leave once their transaction is not parked'"
    )


def downgrade() -> None:
    op.execute("DROP TABLE public.withheld")
