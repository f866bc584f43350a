"""Registered definitions of sagas."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COMMENTS = {
    "version": "never changes once it is registered",
    "document": "as it was registered; steps as in POST /sagas",
    "created_at": "the newest of a name is what runs by default",
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE public.saga_definitions (
            id uuid PRIMARY KEY,
            name text NOT NULL,
            version text NOT NULL,
            document json NOT NULL,
            created_at timestamptz NOT NULL,
            CONSTRAINT saga_definitions_version UNIQUE (name, version)
        )
    """)
    op.execute("CREATE INDEX saga_definitions_created ON public.saga_definitions (created_at, id)")
    op.execute("CREATE INDEX saga_definitions_newest ON public.saga_definitions (name, created_at, id)")
    for column, meaning in _COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN public.saga_definitions.{column} IS '{meaning}'")


def downgrade() -> None:
    op.execute("DROP TABLE public.saga_definitions")
