"""Fixed point, secret sharing, sealing and the aggregator parties."""
