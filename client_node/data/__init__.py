"""A site's records: its table, its cells, and the checks of both."""
