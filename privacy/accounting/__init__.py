"""Epsilon and delta of releases: composition by PLD and RDP, and a third accountant for comparison."""

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
