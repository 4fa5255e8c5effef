"""What the coordinator keeps: tables in SQL, vectors and envelopes of a run in files, replicas of ledgers."""
