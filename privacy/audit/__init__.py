"""Tests of a training step's privacy claim: checks of the engine, canaries and lower bounds, membership attacks.

`engine_checks.check_engine` holds a training step to its claim, check by check; `canaries.run_audit` lets an auditor
guess which canary units took part; `one_run` turns the guesses into a lower bound on epsilon; `membership_attack`
scores an attack on a trained adapter. None of them reads a real record by itself.

Of 800 canaries an auditor guesses 100, and 90 guesses are right. At 95 % confidence that
refutes every epsilon below 1.63:

>>> from confide.privacy.audit import one_run
>>> round(one_run.epsilon_lower_bound(right=90, guesses=100, canaries=800, delta=1e-5, confidence=0.95), 2)
1.63
"""

__all__ = ["black_box", "canaries", "engine_checks", "membership_attack", "one_run"]
