"""A study: the draft in study.toml, the immutable study made of it, and what is sent of its state."""
