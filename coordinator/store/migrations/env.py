"""Alembic's entry point: runs migrations inside the transaction of the connection that the caller hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
