"""Epsilon and delta of releases: composition by PLD and RDP, and a third accountant for comparison.

A `Release` says all that an accountant needs to know of one opened sum. Call `epsilon_pld` first; `epsilon_rdp` gives
the looser bound beside it, and `solve_noise_multiplier` goes the other way, from a target to the noise. `composition`
is the place to read.

Noise of four sensitivities, added once over everybody: PLD finds the exact epsilon of that Gaussian (Balle & Wang
2018, arXiv:1805.06530), RDP a little more.

>>> from confide.privacy.accounting import Release, epsilon_pld, epsilon_rdp
>>> release = Release(
...     mode="local", site_noise_int=4 * 2**20, scale_bits=20, clip_norm=1.0, dim=1, sample_rate=1.0, sites=1
... )
>>> round(epsilon_pld([release], delta=1e-5, colluding=0), 2), round(epsilon_rdp([release], delta=1e-5, colluding=0), 2)
(0.93, 1.01)
"""

from .composition import Mode, Release, epsilon_pld, epsilon_rdp, site_noise, solve_noise_multiplier, topup_noise

__all__ = [
    "Mode",
    "Release",
    "composition",
    "epsilon_pld",
    "epsilon_rdp",
    "prv",
    "renyi",
    "site_noise",
    "solve_noise_multiplier",
    "topup_noise",
]
