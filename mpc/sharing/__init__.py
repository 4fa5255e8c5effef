"""Secret sharing: fixed point in a ring, shares, sealing, sketches and tags."""
