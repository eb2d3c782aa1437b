"""What alembic runs: the migrations, on the connection and in the transaction that it was given."""

from alembic import context

from whoseblock.journal.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
