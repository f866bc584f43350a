"""The journal's answers to requests are found by the request's id.

Partial, so that only requests pay for it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE INDEX journal_request ON public.journal ((input ->> 'request_id'))
        WHERE input_type = 'fluxora.RequestMade'
    """)


def downgrade() -> None:
    op.execute("DROP INDEX public.journal_request")
