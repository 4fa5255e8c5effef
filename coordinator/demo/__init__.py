"""A whole federation on this machine: real processes, real records, and what to compare them with."""
