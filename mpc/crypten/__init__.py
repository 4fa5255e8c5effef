"""What runs on CrypTen: its runtime in a party's process, the norm check, triples by oblivious transfer."""

__all__ = ["norm_check", "runtime", "triples"]
