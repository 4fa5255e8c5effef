"""The DP mechanism of a site: sampling, clipping by unit, noise, and the round release made of them.

`site_round.round_release` is the whole: it draws a sample, clips each unit's gradient, adds up, rounds and adds noise.
Read it first and the parts after it: `sampling`, `batches`, `clipping`, `projection`, `noise`. `independence` refuses
models in which one unit's gradient depends on another's records, `batches` sees to it that rounding does not either.
`many_sites` computes the releases of several sites at once, for simulations.

A count of who was drawn, with noise of standard deviation 20. The seeded bytes make this example repeat itself; without
them both functions take the operating system's.

>>> from confide.privacy.mechanism import noise, sampling
>>> seeded = sampling.SeededBytes(b"an example")
>>> drawn = sampling.poisson_sample(1000, 0.1, seeded)
>>> drawn.size, drawn.size + int(noise.discrete_gaussian(20, 1, seeded)[0])
(101, 79)
"""

__all__ = [
    "adaptive_clipping", "batches", "independence", "many_sites", "noise", "projection", "sampling", "site_round",
    "unsampled", "workers",
]  # fmt: skip
