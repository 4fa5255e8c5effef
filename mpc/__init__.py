"""Secure aggregation: secret sharing, sealing, and the three parties that add shares up.

Imports nothing of ours and knows neither a model nor an epsilon. Begin with `sharing`: how a vector becomes three
shares, and the shares of a sum the sum. `party` runs an aggregator, `links` connects three of them, `crypten` checks
norms on shares, and `psi` finds the people that two organisations both know.

A bank and a shop learn where in their own lists the common people stand, and nothing of the others:

>>> from confide.mpc import psi
>>> bank, shop = psi.Owner(["p-1", "p-2", "p-3"], "fraud"), psi.Owner(["P 9", "P 2"], "fraud")
>>> to_bank, to_shop = shop.answer(bank.offer), bank.answer(shop.offer)
>>> bank.common(to_bank, to_shop), shop.common(to_shop, to_bank)
([1], [1])
"""

__all__ = ["crypten", "links", "party", "psi", "sharing"]

if "." not in __name__:
    raise ImportError("this folder is the package confide.mpc: write `import confide.mpc`, not `import mpc`")
