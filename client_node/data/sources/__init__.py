"""The places that records are read from, one file a kind: each gives its columns' names, then batches of columns.

Every kind is a `Rows`: it streams, holds one batch at a time, and shows no cell in a message. `tables.open_table` has a
line for each kind.
"""
