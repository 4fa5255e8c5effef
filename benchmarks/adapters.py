"""Measures the bytes of a thyroid round by adapter and form of state, and the cost of coarser forms in AUC.

    python benchmarks/adapters.py [--part bytes|state|cut] [--seeds 1 2 3] [--rounds N] [--backbone DIR] [--json]

bytes  The packets of one round to and from a site, made, signed and sealed by the functions of a real run, as the
       objects into which Flower splits them: down the plan and the total of the round before, up the sealed shares.
       They have no ledger entry; HTTP and TLS come on top. The form of the state changes nothing: no state travels.
state  The study in one process (`coordinator.comparison.federated.federate`) with states in float32 and in int8, with
       its own noise and without noise. Without noise a seed fixes the drawn units, so both forms see the same samples;
       with noise each run draws anew.
cut    The first seed's adapter without noise, with every weight cut to a smaller rank by singular values: relative
       error of all products together (Frobenius), and AUC with the head unchanged.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from quality import SCALE_BITS, Bench, prepare_bench

from confide.client_node.flower import pack
from confide.client_node.replay.following import total_bytes
from confide.client_node.shares.seal import Sealer
from confide.client_node.study import AggregatorParty, Participant, Study, StudyDraft
from confide.client_node.study.cost import ring_of
from confide.client_node.study.study import Start
from confide.client_node.wire.messages import (
    KeyCertificate,
    Outcome,
    Packet,
    Replay,
    RoundPlan,
    Sealed,
    SignedTotal,
    Update,
    sign,
)
from confide.coordinator.comparison.federated import federate, logits, untrained
from confide.models.adapters import AdaptedModel
from confide.models.adapters.combining import compress
from confide.models.adapters.peft_import import released
from confide.models.adapters.provenance import Provenance, Source
from confide.models.evaluation.metrics import auc
from confide.mpc.sharing.sealing import new_keypair
from confide.privacy.accounting import Mode

RUN, STATE = "bench", "0" * 64
KINDS = ("float32", "int8")
MODES: tuple[Mode, ...] = ("none", "distributed")


def changed(draft: StudyDraft, part: str, **terms: object) -> StudyDraft:
    return draft.model_copy(update={part: getattr(draft, part).model_copy(update=terms)})


def study_of(draft: StudyDraft, dim: int, keys: dict[str, Ed25519PrivateKey]) -> Study:
    identities = {name: key.public_key().public_bytes_raw().hex() for name, key in keys.items()}
    ring = ring_of(draft, dim)
    return Study.model_construct(
        draft=draft,
        backbone_hash="0" * 64,
        sites=tuple(Participant(name=name, identity=identities[name]) for name in draft.participants.sites),
        aggregators=tuple(
            AggregatorParty.model_construct(name=name, identity=identities[name], address="", certificate="")
            for name in draft.participants.aggregators
        ),
        coordinator=identities["coordinator"],
        created=date(2026, 1, 31),
        scale_bits=ring.scale_bits,
        ring_bits=ring.bits,
        dim=dim,
        start=Start(state=STATE, head_size=0),
    )


def framed(packet: Packet) -> int:
    """Bytes of the objects that Flower makes of a packet."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(pack(packet)).values())


def round_bytes(draft: StudyDraft, adapted: AdaptedModel) -> dict[str, Any]:
    """Measures the packets of one round to and from one site."""
    dim, site = draft.state_dim(adapted.layout.dim), draft.participants.sites[0]
    names = ("coordinator", *draft.participants.sites, *draft.participants.aggregators)
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    study = study_of(draft, dim, keys)
    first, second, third = (
        KeyCertificate.issue(
            study=study.study_hash, run=RUN, aggregator_id=i, public_key=new_keypair()[1], signer=keys[name]
        )
        for i, name in enumerate(draft.participants.aggregators)
    )
    plan = RoundPlan(
        to=site, study=study.study_hash, run=RUN, lease=1, round=1, keys=(first, second, third), outcomes=(),
        ledger_from=1, start=STATE,
    )  # fmt: skip
    total = bytes(total_bytes(study.planned_round(1)))
    signed = SignedTotal(
        request=STATE, study=study.study_hash, run=RUN, round=1, start=STATE, kept=study.site_names(), set_digest=STATE,
        total_digest=STATE,
    )  # fmt: skip
    evidence = tuple(sign(signed, keys[party.name]).body.decode() for party in study.aggregators)
    outcome = Outcome(round=1, sites=study.site_names(), evidence=evidence)
    replay = Replay(to=site, study=study.study_hash, run=RUN, lease=1, outcome=outcome, offset=0)
    down = [sign(plan, keys["coordinator"]), sign(replay, keys["coordinator"], {"part": total})]
    vector = np.random.default_rng(1).integers(-1000, 1000, dim)
    envelopes = Sealer.of_plan(study, plan, site=site, signer=keys[site]).seal(vector, state=STATE)
    one, two, three = (Sealed(size=len(each), digest=STATE) for each in envelopes)
    answer = Update(request=down[0].digest(), run=RUN, round=1, sealed=(one, two, three), ledger=())
    up = sign(answer, keys[site], {f"envelope-{i}": each for i, each in enumerate(envelopes)})
    bytes_down = sum(map(framed, down))
    return {"dim": dim, "ring_bits": study.ring_bits, "total": len(total), "down": bytes_down, "up": framed(up)}


def bytes_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    for name, freeze_a in (("A frozen (the study)", True), ("A and B trained", False)):
        draft = changed(bench.draft, "adapter", freeze_a=freeze_a)
        yield {"trained": name} | round_bytes(draft, untrained(draft, bench.backbone))


def train(bench: Bench, draft: StudyDraft, mode: Mode, seed: int) -> AdaptedModel:
    adapted = untrained(draft, bench.backbone)
    sites = {name: (table.ids, table.labels, table.units) for name, table in bench.sites.items()}
    federate(draft, adapted, sites, mode=mode, scale_bits=SCALE_BITS, seed=seed)
    return adapted


def quality(bench: Bench, adapted: AdaptedModel) -> float:
    return auc(logits(adapted, bench.held_out.ids), bench.held_out.labels).value


def state_rows(bench: Bench, seeds: list[int]) -> Iterator[dict[str, Any]]:
    for mode in MODES:
        found: dict[str, list[float]] = {}
        for kind in KINDS:
            draft = changed(bench.draft, "rounds", state=kind)
            found[kind] = [quality(bench, train(bench, draft, mode, seed)) for seed in seeds]
        lost = np.subtract(found["float32"], found["int8"])
        yield {
            "noise": mode,
            **{kind: round(float(np.mean(values)), 5) for kind, values in found.items()},
            "runs": {kind: [round(value, 5) for value in values] for kind, values in found.items()},
            "lost points": round(100 * float(lost.mean()), 3),
        }


def cut_rows(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    adapted = train(bench, bench.draft, "none", seed)
    source = Source(
        study="thyroid", study_hash=STATE, sites=(), rounds=0, unit="patient", mode="none", epsilon=None, delta=None,
        collusion=0, audit="",
    )  # fmt: skip
    whole = released(adapted, Provenance(backbone_hash=STATE, sources=(source,)))
    for rank in range(whole.rank, 0, -1):
        cut = compress(whole, rank)
        put(adapted, {name: tuple(pair) for name, pair in cut.adapter.pairs.items()})
        each = sorted(cut.error_of.values())
        yield {
            "rank": rank,
            "relative error": round(cut.relative_error, 4),
            "of a weight, median": round(each[len(each) // 2], 4),
            "of a weight, most": round(each[-1], 4),
            "AUC": round(quality(bench, adapted), 5),
        }


@torch.no_grad()
def put(adapted: AdaptedModel, pairs: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """Puts factors of a smaller rank in place, for a study whose scaling is 1."""
    assert adapted.config.lora_scaling == 1
    for name, (lora_A, lora_B) in pairs.items():
        place, part = name.removeprefix("base_model.model.").partition(".lora_")[0], ""
        if place.endswith(".base_layer"):
            place, part = place.removesuffix(".base_layer"), "gate_up_proj."
        elif place.endswith(".experts"):
            part = "down_proj."
        factors = adapted.adapters[place].named_factors()
        missing = adapted.config.rank - lora_A.shape[-2]
        factors[f"{part}lora_A"].copy_(torch.nn.functional.pad(lora_A, (0, 0, 0, missing)))
        factors[f"{part}lora_B"].copy_(torch.nn.functional.pad(lora_B, (0, missing)))


def main() -> None:
    """Prints a table a part, or an object a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("bytes", "state", "cut"), nargs="+", default=["bytes", "state", "cut"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, help="instead of the study's")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true", help="one object a row")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench, _ = prepare_bench(Path(folder), asked.rounds, asked.backbone)
        if not asked.json:
            print(f"{platform.platform()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        parts = {
            "bytes": lambda: bytes_rows(bench),
            "state": lambda: state_rows(bench, asked.seeds),
            "cut": lambda: cut_rows(bench, asked.seeds[0]),
        }
        for part in asked.part:
            for number, row in enumerate(parts[part]()):
                if asked.json:
                    print(json.dumps({"part": part} | row), flush=True)
                    continue
                if number == 0:
                    print(f"\n| {' | '.join(row)} |\n|{'---|' * len(row)}")
                print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
