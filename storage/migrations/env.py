"""Alembic's environment: runs the revisions on the connection that ``storage.index.connection.migrate`` passes."""

from alembic import context

from storage.index.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
