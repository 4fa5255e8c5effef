"""The DP mechanism of a site: sampling, clipping by unit, noise, and the round release made of them."""
