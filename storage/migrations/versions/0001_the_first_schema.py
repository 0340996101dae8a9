"""The first schema, which ``storage.index.connection.migrate`` created from storage/index/tables"""

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: no index is older."""
