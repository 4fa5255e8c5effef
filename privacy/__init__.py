"""Differential privacy of a site: the mechanism, its accounting, the ledger, reports and audits.

Nothing here knows of a network, of secret sharing or of a federation. Begin with `accounting` to see what a study would
cost, with `ledger` to see what a site writes before anything is released, and with `mechanism.site_round` for the
release itself.

What one patient pays for 40 opened sums over four hospitals, if one of the others pools what it knows with an observer:

>>> from confide.privacy.accounting import Release, epsilon_pld, site_noise
>>> noise = dict(noise_multiplier=2.35, clip_norm=1.0, cohort=4, max_dropouts=0, collusion=1, scale_bits=16)
>>> std = site_noise(**noise, mode="distributed")
>>> update = Release(
...     mode="distributed", site_noise_int=std, scale_bits=16, clip_norm=1.0, dim=5000, sample_rate=0.2, sites=4
... )
>>> round(epsilon_pld({update: 40}, delta=1e-5, colluding=1), 1)
2.5
"""

__all__ = ["accounting", "audit", "ledger", "mechanism", "report"]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.privacy: write `import confide.privacy`, not `import privacy`"
    )
