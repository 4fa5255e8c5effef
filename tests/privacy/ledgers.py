"""Charges, budgets and small ledgers for the tests beside."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.privacy.accounting import Release, site_noise
from confide.privacy.ledger import Budget, Charge, Ledger

SITES = ("east", "north", "south", "west")
STUDY = "ab" * 32


def signer(seed: int = 1) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def release(*, mode="distributed", sites=4, multiplier=1.2, sample_rate=0.2, dim=1000) -> Release:
    noise = site_noise(multiplier, 1.0, len(SITES), 0, 1, 24, mode)
    return Release(
        mode=mode,
        site_noise_int=noise,
        scale_bits=24,
        clip_norm=1.0,
        dim=dim,
        sample_rate=sample_rate,
        sites=sites,
    )


def charge(round=0, *, run="run-1", study=STUDY, dataset="thyroid", cohort=SITES, **of_release) -> Charge:
    return Charge(
        study=study,
        run=run,
        round=round,
        dataset=dataset,
        unit="patient",
        cohort=cohort,
        release=release(**of_release),
    )


def budget(epsilon=8.0, *, dataset="thyroid", delta=1e-5, collusion=1) -> Budget:
    return Budget(dataset=dataset, unit="patient", epsilon=epsilon, delta=delta, collusion=collusion)


def ledger_with(path: Path, *, site="east", seed=1, rounds=3, settled=2, epsilon=8.0) -> Ledger:
    """A ledger with a budget and `rounds` charges, the first `settled` of them settled over all four sites."""
    ledger = Ledger.open(path, signer(seed), site)
    ledger.set_budget(budget(epsilon))
    for round in range(rounds):
        ledger.reserve(charge(round))
        if round < settled:
            ledger.settle("run-1", round, SITES)
    return ledger
