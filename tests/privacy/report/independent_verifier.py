"""A verifier of budget reports that shares nothing with confide: docs/formats-report.md and formats-ledger.md as code.

Standard library and `cryptography` only: what an auditor could write. It checks signatures, chains and settled sets,
derives every noise multiplier in exact arithmetic and recomputes every epsilon by RDP; PLD is left to other programs.

    python independent_verifier.py report.json
"""

import hashlib
import json
import math
import sys
from collections import Counter
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ORDERS = [*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512, 768, 1024]


class Rejected(Exception):
    """The report does not hold; the message says where."""


def require(holds, what):
    if not holds:
        raise Rejected(what)


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def check_signature(key, domain, message, signature, what):
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(signature), domain.encode() + b"\n" + message
        )
    except (InvalidSignature, ValueError) as err:
        raise Rejected(f"{what}: signature") from err


def check_chain(site):
    previous = "0" * 64
    opening = site["entries"][0]
    require(opening["kind"] == "open" and opening["body"]["format"] == "confide-ledger-2", "entry 0 opens no ledger")
    require(opening["body"]["public_key"] == site["public_key"], "entry 0 names another key")
    require(opening["body"]["site"] == site["name"], "entry 0 names another site")
    for seq, entry in enumerate(site["entries"]):
        where = f"entry {seq}"
        require(entry["seq"] == seq and entry["previous"] == previous, f"{where}: out of order")
        contents = {name: entry[name] for name in ("seq", "time", "kind", "body", "previous")}
        digest = hashlib.sha256(b"confide ledger entry 1\n" + canonical(contents)).hexdigest()
        require(entry["hash"] == digest, f"{where}: hash")
        check_signature(
            site["public_key"], "confide ledger signature 1", bytes.fromhex(digest), entry["signature"], where
        )
        previous = digest


def root_up(square):
    root = math.isqrt(square)
    return root if root * root == square else root + 1


def over(release, n):
    """The release once the opened sum is known to hold n sites."""
    noise, planned, k = release["site_noise_int"], release["planned_sites"], release["noise_collusion"]
    if planned and n < planned:
        v = -(-noise * noise * (planned - k) // (n - k))
        t = max(10, root_up(root_up(v) ** 2 - noise * noise))
        noise = math.isqrt(noise * noise + t * t)
    return release | {"site_noise_int": noise, "sites": n, "planned_sites": 0, "noise_collusion": 0}


def multiplier(release, c):
    if release["planned_sites"]:
        return min(multiplier(over(release, n), c) for n in (release["sites"], release["planned_sites"]))
    unknown = 1 if release["mode"] == "local" else release["sites"] - c
    noise = release["site_noise_int"]
    if release["mode"] == "none" or noise < 10 or unknown < 1:
        return 0.0
    sensitivity = 2.0 ** release["scale_bits"] * float.fromhex(release["clip_norm"]) + math.sqrt(release["dim"])
    return math.sqrt(unknown * noise**2 - 16) / sensitivity


def five_digits(value, rounding):
    return float(Context(prec=5, rounding=rounding).create_decimal(Decimal(repr(value))))


def pairs(releases, c):
    """(multiplier, rate) -> how many Gaussians."""
    counts = Counter()
    for release in releases:
        s = min(multiplier(release, c), 1e6)
        s = five_digits(s, ROUND_FLOOR) if s >= 0.01 else 0.0
        q = five_digits(max(float.fromhex(release["sample_rate"]), 1e-9), ROUND_CEILING)
        counts[s, q] += release["steps"]
    return counts


def log_moment(s, q, a):
    if q == 1:
        return a * (a - 1) / (2 * s * s)
    terms = [
        math.lgamma(a + 1) - math.lgamma(i + 1) - math.lgamma(a - i + 1)
        + (a - i) * math.log1p(-q) + i * math.log(q) + (i * i - i) / (2 * s * s)
        for i in range(a + 1)
    ]  # fmt: skip
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))


def rdp_epsilon(counts, delta):
    if not counts:
        return 0.0
    if any(s == 0 for s, _ in counts):
        return math.inf
    bounds = []
    for a in ORDERS:
        divergence = sum(n * log_moment(s, q, a) / (a - 1) for (s, q), n in counts.items())
        bounds.append(divergence + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1))
    return max(0.0, min(bounds))


def replay(site):
    """(dataset, unit) -> (budget or None, releases as accounted for in ledger order, recovery or None)."""
    budgets, reserved, settled, stated, lost = {}, {}, {}, {}, {}
    for entry in site["entries"][1:]:
        body = entry["body"]
        if entry["kind"] == "budget":
            budgets[body["dataset"], body["unit"]] = body
            stated.setdefault((body["dataset"], body["unit"]), []).append(body)
        elif entry["kind"] == "recover":
            caps = stated[body["dataset"], body["unit"]]
            for name, worst in (("epsilon", max), ("delta", max)):
                kept = worst(float.fromhex(cap[name]) for cap in caps)
                require(float.fromhex(body[name]) == kept, "a recovery that counts less than a cap allowed")
            require(body["collusion"] == min(cap["collusion"] for cap in caps), "a recovery beyond its caps")
            require(body["generation"] >= max((one["generation"] for one in lost.values()), default=1), "generation")
            lost[body["dataset"], body["unit"]] = body
        elif entry["kind"] == "reserve":
            require((body["run"], body["round"]) not in reserved, "a round is reserved twice")
            is_closed = (body["dataset"], body["unit"]) in lost and body["release"]["mode"] != "none"
            require(not is_closed, "a charge on a closed account")
            require(body["relation"] == "add_or_remove_one" and body["sampler"] == "poisson", "another mechanism")
            reserved[body["run"], body["round"]] = body
        else:
            require(entry["kind"] == "settle", "unknown kind")
            key = body["run"], body["round"]
            require(key in reserved and key not in settled, "a settle without reserve")
            charge = reserved[key]
            require(set(body["summed"]) <= set(charge["cohort"]), "strangers were summed")
            fewest = charge["release"]["sites"] if charge["release"]["mode"] == "distributed" else 1
            require(len(set(body["summed"])) == len(body["summed"]) >= fewest, "too few were summed")
            settled[key] = body["summed"]
    accounts = {key: (budget, [], lost.get(key)) for key, budget in budgets.items()}
    for key, charge in reserved.items():
        summed = settled.get(key, [])
        release = over(charge["release"], len(summed)) if site["name"] in summed else charge["release"]
        accounts.setdefault((charge["dataset"], charge["unit"]), (None, [], None))[1].append(release)
    return accounts


def check_account(stated, budget, releases, recovery):
    require(stated["releases"] == len(releases), "releases")
    require(stated["unprotected"] == sum(release["mode"] == "none" for release in releases), "unprotected")
    require(sum(event["count"] for event in stated["events"]) == len(releases), "events")
    if budget is None:
        require(stated["budget"] is None, "budget")
        require(all(item["rdp"] == ("inf" if releases else "0.0") for item in stated["spent"]), "spent without budget")
        return
    delta, collusion = float.fromhex(budget["delta"]), budget["collusion"]
    said = stated["budget"]
    require((float(said["epsilon"]), float(said["delta"])) == (float.fromhex(budget["epsilon"]), delta), "budget")
    require(said["collusion"] == collusion, "budget")
    require([item["colluding"] for item in stated["spent"]] == sorted({0, 1, collusion}), "levels of collusion")
    for item in stated["spent"]:
        least = least_spent(recovery, item["colluding"], delta)
        check_epsilon(item["rdp"], max(least, rdp_epsilon(pairs(releases, item["colluding"]), delta)))
    require(not (recovery and stated["course"]), "course of an account with lost entries")
    for point in stated["course"]:
        check_epsilon(point["rdp"], rdp_epsilon(pairs(releases[: point["releases"]], collusion), delta))


def least_spent(recovery, colluding, delta):
    """What lost entries count for."""
    if recovery is None:
        return 0.0
    covers = colluding <= recovery["collusion"] and delta >= float.fromhex(recovery["delta"])
    return float.fromhex(recovery["epsilon"]) if covers else math.inf


def check_epsilon(stated, found):
    same = float(stated) == found or abs(float(stated) - found) <= 1e-6 * max(1.0, found)
    require(same, f"epsilon by RDP: says {stated}, is {found}")


def verify(report):
    """Raises `Rejected` unless signatures, chains, budgets and every epsilon by RDP hold."""
    try:
        require(report["format"] == "confide-budget-report-2", "format")
        contents = {name: value for name, value in report.items() if name != "signature"}
        check_signature(report["issuer"], "confide budget report 2", canonical(contents), report["signature"], "report")
        for site in report["sites"]:
            check_chain(site)
            accounts = replay(site)
            named = [(account["dataset"], account["unit"]) for account in site["accounts"]]
            require(named == sorted(accounts), "accounts")
            for account, key in zip(site["accounts"], named, strict=True):
                check_account(account, *accounts[key])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as err:
        raise Rejected(f"malformed: {err!r}") from err


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        verify(json.load(file))
    print("holds")
