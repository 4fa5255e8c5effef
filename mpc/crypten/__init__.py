"""Computation on shares with CrypTen: its runtime in a party's process, sums, the norm check, oblivious transfer.

`runtime` is the one module that imports CrypTen, with its random numbers, links and triples replaced by ours: load it
in a party's process, before anything else imports CrypTen. A party adds vectors up in a `sums.SharedTotal`, whose
tensors are CrypTen's, and opens it with the other two. `norm_check.verdicts` compares their sketches; `triples` gives
it the multiplication triples that it uses up. docs/norm-check.md has the proofs.

To compare one site's sketch of 256 rows with 17 bits takes 8,448 ANDs, in 22 steps one after the other:

>>> from confide.mpc.crypten import norm_check
>>> from confide.mpc.sharing import sketch
>>> limits = sketch.Limits(ring_bits=32, rows=256, window=2**26, tau=40, bits_used=17)
>>> counts = norm_check.and_counts(limits)
>>> sum(counts), len(counts)
(8448, 22)
"""

__all__ = ["norm_check", "runtime", "sums", "triples"]
