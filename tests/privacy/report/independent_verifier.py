"""A verifier of budget reports that shares nothing with confide: docs/formats-report.md and formats-ledger.md as code.

Standard library and `cryptography` only: what an auditor could write. It checks signatures, chains and settled sets,
holds every charge against its study's text, derives every noise
multiplier in exact arithmetic and recomputes every epsilon by RDP and by the filter; PLD is left to
other programs.

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


def once(pairs):
    """An object of JSON in which no name occurs twice."""
    require(len(dict(pairs)) == len(pairs), "a name occurs twice in one object")
    return dict(pairs)


def check_signature(key, domain, message, signature, what):
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(signature), domain.encode() + b"\n" + message
        )
    except (InvalidSignature, ValueError) as err:
        raise Rejected(f"{what}: signature") from err


def check_chain(site):
    previous, keys = "0" * 64, [site["public_key"]]
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
        check_signature(keys[-1], "confide ledger signature 1", bytes.fromhex(digest), entry["signature"], where)
        if entry["kind"] == "succeed":
            keys.append(next_key(entry["body"], site["name"], keys, bytes.fromhex(previous), where))
        previous = digest
    return keys


def next_key(body, name, keys, previous, where):
    """The key that signs after an entry `succeed`."""
    require(set(body) == {"succession", "accepted"}, f"{where}: body")
    stated = body["succession"]
    said = {part: stated[part] for part in ("site", "coordinator", "old", "new", "time")}
    require(len(stated) == 7 and stated["site"] == name, f"{where}: another site")
    require(stated["old"] == keys[-1] and stated["new"] not in keys, f"{where}: does not follow")
    for which in ("old", "new"):
        check_signature(stated[which], "confide key succession 1", canonical(said), stated[f"{which}_signature"], where)
    check_signature(stated["new"], "confide ledger succession 1", previous, body["accepted"], where)
    return stated["new"]


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


def surcharge(delta, a):
    return math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)


def epsilon_at(counts, delta, a):
    """Epsilon by the divergences at one order."""
    if not counts:
        return 0.0
    if any(s == 0 for s, _ in counts):
        return math.inf
    divergence = sum(n * log_moment(s, q, a) / (a - 1) for (s, q), n in counts.items())
    return max(0.0, divergence + surcharge(delta, a))


def rdp_epsilon(counts, delta):
    return min(epsilon_at(counts, delta, a) for a in ORDERS)


def filter_order(budget):
    """The filter's order for a `budget` entry."""
    epsilon, delta = float.fromhex(budget["epsilon"]), float.fromhex(budget["delta"])
    room = {a: (epsilon - surcharge(delta, a)) / a for a in ORDERS}
    most = max(room.values())
    return min(a for a in ORDERS if room[a] >= 0.9 * most) if most > 0 else ORDERS[-1]


def named(cohorts, body):
    """The sites of a reserve's cohort, by name."""
    stated = body["cohort"]
    require(isinstance(stated, list) or stated in cohorts, "a cohort that nothing names")
    return stated if isinstance(stated, list) else cohorts[stated]


def cohorts_of(site):
    """digest -> names, of all entries that name a cohort."""
    cohorts = {}
    for entry in site["entries"]:
        if entry["kind"] == "cohort":
            require(set(entry["body"]) == {"digest", "sites"}, "a cohort of other fields")
            names, digest = entry["body"]["sites"], entry["body"]["digest"]
            require(names and names == sorted(set(names)), "a cohort that is not sorted, or names a site twice")
            require(digest == hashlib.sha256(b"confide cohort 1\n" + canonical(names)).hexdigest(), "a cohort's digest")
            require(digest not in cohorts, "a cohort is named twice")
            cohorts[digest] = names
    return cohorts


def replay(site):
    """(dataset, unit) -> (budget, the filter's order, releases as accounted for in ledger order, recovery) or Nones."""
    budgets, orders, reserved, settled, stated, lost = {}, {}, {}, {}, {}, {}
    cohorts, there = cohorts_of(site), set()
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
            require(isinstance(body["cohort"], list) or body["cohort"] in there, "a cohort before its name")
            require(body["relation"] == "add_or_remove_one" and body["sampler"] == "poisson", "another mechanism")
            reserved[body["run"], body["round"]] = body
            account = body["dataset"], body["unit"]
            if account in budgets:
                orders.setdefault(account, filter_order(budgets[account]))
        elif entry["kind"] == "cohort":
            there.add(body["digest"])
        elif entry["kind"] == "succeed":
            continue
        else:
            require(entry["kind"] == "settle", "unknown kind")
            key = body["run"], body["round"]
            require(key in reserved and key not in settled, "a settle without reserve")
            charge = reserved[key]
            cohort, summed = named(cohorts, charge), body.get("summed")
            if summed is None:
                require(body["missing"] == sorted(set(body["missing"]) & set(cohort)), "strangers were missing")
                summed = [name for name in cohort if name not in body["missing"]]
            require(set(summed) <= set(cohort), "strangers were summed")
            fewest = charge["release"]["sites"] if charge["release"]["mode"] == "distributed" else 1
            require(len(set(summed)) == len(summed) >= fewest, "too few were summed")
            settled[key] = summed
    accounts = {
        key: (budget, orders.get(key, filter_order(budget)), [], lost.get(key)) for key, budget in budgets.items()
    }
    for key, charge in reserved.items():
        summed = settled.get(key, [])
        release = over(charge["release"], len(summed)) if site["name"] in summed else charge["release"]
        accounts.setdefault((charge["dataset"], charge["unit"]), (None, None, [], None))[2].append(release)
    return accounts


def release_of(text, purpose):
    """The release that a site reserves for a round of a study."""
    draft, privacy, planned = text["draft"], text["draft"]["privacy"], len(text["sites"])
    mode, z, clip, scale, dim = (
        privacy["mode"],
        privacy["noise_multiplier"],
        privacy["clip_norm"],
        text["scale_bits"],
        text["dim"],
    )
    rate, steps, quorum = privacy["sample_rate"], privacy["local_steps"], draft["rounds"]["min_sites"]
    if privacy["clipping"] == "adaptive":
        clip = math.sqrt(1.01)
    if purpose == "prototype":
        z, clip, scale, dim = draft["prototype"]["noise_multiplier"], 1.0, 20, draft["prototype"]["length"]
        rate, steps = 1.0, 1
    if purpose == "evaluation":
        z, clip, scale, dim = draft["evaluation"]["noise_multiplier"], 1.0, 20, 2 * draft["evaluation"]["bins"]
        rate, steps = 1.0, 1
    if mode != "local":
        quorum = planned if mode == "none" else max(quorum, planned - privacy["max_dropouts"])
    topped = privacy["dropouts"] == "top-up"
    honest = 1 if mode == "local" else planned - privacy["collusion"] - (0 if topped else privacy["max_dropouts"])
    noise = 0 if mode == "none" else math.ceil(z * clip / math.sqrt(honest) * 2.0**scale)
    return {
        "mode": mode, "site_noise_int": noise, "scale_bits": scale, "clip_norm": clip, "dim": dim, "sample_rate": rate,
        "sites": quorum, "steps": steps, "planned_sites": planned if topped else 0,
        "noise_collusion": privacy["collusion"] if topped else 0,
    }  # fmt: skip


def check_charge(text, charge, site):
    """Holds a reserve against the text of its study."""
    rounds, names = text["draft"]["rounds"]["rounds"], sorted(party["name"] for party in text["sites"])
    parties = [(party["name"], party["identity"]) for party in text["sites"]]
    require(any((site["name"], key) in parties for key in check_chain(site)), "study: another site or key")
    require(
        named(cohorts_of(site), charge) == names and charge["unit"] == text["draft"]["data"]["unit"],
        "study: cohort or unit",
    )
    closing = [purpose for purpose in ("prototype", "evaluation") if text["draft"].get(purpose)]
    purposes = dict.fromkeys(range(1, rounds + 1), "update")
    purposes |= {rounds + 1 + place: purpose for place, purpose in enumerate(closing)}
    require(charge["round"] in purposes or charge["purpose"] == "evaluation", "study: purpose")
    require(charge["round"] in purposes, "study: round")
    require(charge["purpose"] == purposes[charge["round"]], "study: purpose")
    release = dict(charge["release"])
    for name, value in release_of(text, charge["purpose"]).items():
        found = float.fromhex(release[name]) if name in ("clip_norm", "sample_rate") else release[name]
        slack = 1 if name == "site_noise_int" else 1e-12 if isinstance(value, float) else 0
        same = found == value if isinstance(value, str) else abs(found - value) <= slack
        require(same, f"study: {name} is {found}, its text gives {value}")


def check_studies(report):
    texts = {study["hash"]: study["text"] for study in report["studies"]}
    require(len(texts) == len(report["studies"]), "a study is listed twice")
    for key, text in texts.items():
        require(text is None or hashlib.sha256(text.encode("ascii")).hexdigest() == key, "study: hash of the text")
    read = {key: json.loads(text, object_pairs_hook=once) for key, text in texts.items() if text is not None}
    for site in report["sites"]:
        for entry in site["entries"]:
            if entry["kind"] == "reserve":
                key = entry["body"]["study"]
                require(key in texts, "a study is charged and not listed")
                if key in read and read[key]["format"] in (4, 5):
                    check_charge(read[key], entry["body"], site)


def check_account(stated, budget, order, releases, recovery):
    require(stated["order"] == order, "order of the filter")
    require(stated["releases"] == len(releases), "releases")
    require(stated["unprotected"] == sum(release["mode"] == "none" for release in releases), "unprotected")
    require(sum(event["count"] for event in stated["events"]) == len(releases), "events")
    if budget is None:
        require(stated["budget"] is None, "budget")
        nothing = "inf" if releases else "0.0"
        require(all(item["rdp"] == item["guaranteed"] == nothing for item in stated["spent"]), "spent without budget")
        return
    delta, collusion = float.fromhex(budget["delta"]), budget["collusion"]
    said = stated["budget"]
    require((float(said["epsilon"]), float(said["delta"])) == (float.fromhex(budget["epsilon"]), delta), "budget")
    require(said["collusion"] == collusion, "budget")
    require([item["colluding"] for item in stated["spent"]] == sorted({0, 1, collusion}), "levels of collusion")
    for item in stated["spent"]:
        least = least_spent(recovery, item["colluding"], delta)
        check_epsilons(item, pairs(releases, item["colluding"]), delta, order, least)
    require(not (recovery and stated["course"]), "course of an account with lost entries")
    for point in stated["course"]:
        check_epsilons(point, pairs(releases[: point["releases"]], collusion), delta, order)


def least_spent(recovery, colluding, delta):
    """What lost entries count for."""
    if recovery is None:
        return 0.0
    covers = colluding <= recovery["collusion"] and delta >= float.fromhex(recovery["delta"])
    return float.fromhex(recovery["epsilon"]) if covers else math.inf


def check_epsilons(stated, counts, delta, order, least=0.0):
    for name, found in (("rdp", rdp_epsilon(counts, delta)), ("guaranteed", epsilon_at(counts, delta, order))):
        found = max(least, found)
        said = float(stated[name])
        same = said == found or abs(said - found) <= 1e-6 * max(1.0, found)
        require(same, f"epsilon, {name}: says {said}, is {found}")


def verify(report):
    """Raises `Rejected` unless signatures, chains, studies, budgets and every epsilon by RDP and by the filter hold."""
    try:
        require(report["format"] == "confide-budget-report-3", "format")
        contents = {name: value for name, value in report.items() if name != "signature"}
        check_signature(report["issuer"], "confide budget report 3", canonical(contents), report["signature"], "report")
        for site in report["sites"]:
            check_chain(site)
            accounts = replay(site)
            named = [(account["dataset"], account["unit"]) for account in site["accounts"]]
            require(named == sorted(accounts), "accounts")
            for account, key in zip(site["accounts"], named, strict=True):
                check_account(account, *accounts[key])
        check_studies(report)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as err:
        raise Rejected(f"malformed: {err!r}") from err


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        verify(json.load(file, object_pairs_hook=once))
    print("holds")
