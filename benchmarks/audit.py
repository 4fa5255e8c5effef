"""Measures the detection of broken engines by audit and checks, and membership inference on an adapter.

    python benchmarks/audit.py [--runs N] [--backbone DIR] [--json]
    python benchmarks/audit.py --membership [--shadows N] [--backbone DIR] [--json]

Both use the thyroid study's model, the first with adapters on all parts, so that there are experts to break. It audits
the true engine and sabotaged ones (`tests/privacy/sabotage.py`) several times each, and checks each once. With
--membership: the likelihood-ratio attack with shadow models trained as the study trains, head and LoRA, each on a
random part of the records. Each model is attacked by means of all the others, with the study's noise and without noise.
Private runs draw from the operating system, so every repetition differs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from quality import read_table
from targets import ROWS, with_targets

from confide.client_node.study import StudyDraft, load_draft
from confide.coordinator.comparison.federated import federate, logits, untrained
from confide.coordinator.comparison.linear import noise_of
from confide.models.backbones.pretraining import pretrain
from confide.privacy.accounting import Mode
from confide.privacy.audit.canaries import AuditedStep, run_audit
from confide.privacy.audit.engine_checks import check_engine, site_round
from confide.privacy.audit.membership_attack import attack_auc, likelihood_ratios, logit_confidence, roc
from confide.privacy.mechanism.site_round import ReleaseTerms

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "thyroid"
SCALE_BITS = 17  # what the study's ring gets


def power(draft: StudyDraft, backbone: Path, runs: int) -> list[dict]:
    """One row an engine: bounds of all audits, and the names of the checks that failed."""
    sys.path.insert(0, str(ROOT / "tests" / "privacy"))
    from sabotage import ENGINES

    adapted, privacy = untrained(draft, backbone), draft.privacy
    words = len(draft.record_schema().words())
    terms = ReleaseTerms(
        mode=privacy.mode,
        clip_norm=privacy.clip_norm,
        sample_rate=privacy.sample_rate,
        site_noise_int=noise_of(draft, privacy.mode, SCALE_BITS),
        scale_bits=SCALE_BITS,
        max_rows_per_batch=256,
        max_records_per_unit=draft.data.max_records_per_unit,
    )
    step = AuditedStep(terms=terms, sites=draft.quorum, colluding=privacy.collusion, delta=privacy.delta)
    rows = []
    for name, make in {"true engine": lambda: site_round, **{n: m for n, (m, _) in ENGINES.items()}}.items():
        started, found = time.process_time(), []
        for _ in range(runs):
            found.append(run_audit(make(), adapted, words, step))
            print(f"{name}: {found[-1].lower_bound:.2f}", file=sys.stderr, flush=True)
        audited = (time.process_time() - started) / runs
        checked = check_engine(make(), adapted, words, terms)
        rows.append(
            {
                "engine": name,
                "claim": found[0].claim,
                "reach": found[0].reach,
                "bounds": [round(one.lower_bound, 2) for one in found],
                "right": [one.right for one in found],
                "guesses": found[0].design.guesses,
                "caught_by_audit": sum(not one.holds for one in found),
                "runs": runs,
                "checks": sorted({finding.check for finding in checked.findings}),
                "cpu_seconds_an_audit": round(audited, 1),
                "cpu_seconds_of_checks": round(time.process_time() - started - audited * runs, 1),
            }
        )
    return rows


def membership(draft: StudyDraft, backbone: Path, folder: Path, shadows: int) -> list[dict]:
    """One row for the study's noise and one for none: the attack on every model by means of the others."""
    sys.path.insert(0, str(EXAMPLE))
    from prepare import prepare

    schema = draft.record_schema()
    parts = prepare(folder / "data")
    tables = {site: read_table([Path(part["train"])], draft, schema) for site, part in parts.items()}
    width = max(table.ids.shape[1] for table in tables.values())
    ids = np.concatenate([np.pad(t.ids, ((0, 0), (0, width - t.ids.shape[1]))) for t in tables.values()])
    labels = np.concatenate([t.labels for t in tables.values()])
    site_of = np.repeat(np.arange(len(tables)), [len(t.labels) for t in tables.values()])
    had = np.random.default_rng(0).random((shadows, len(ids))) < 0.5
    half = draft.model_copy(
        update={"rounds": draft.rounds.model_copy(update={"batch_units": draft.rounds.batch_units / 2})}
    )
    rows = []
    modes: tuple[Mode, ...] = (draft.privacy.mode, "none")
    for mode in modes:
        confidences = []
        for shadow in range(shadows):
            started, adapted = time.perf_counter(), untrained(draft, backbone)
            own = [np.flatnonzero(had[shadow] & (site_of == site)) for site in range(len(tables))]
            sites = {name: (ids[rows], labels[rows], rows) for name, rows in zip(tables, own, strict=True)}
            federate(half, adapted, sites, mode=mode, scale_bits=SCALE_BITS, seed=shadow)
            confidences.append(logit_confidence(logits(adapted, ids), labels))
            print(f"{mode}: shadow {shadow}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        rows.append({"mode": mode, **attack_all(np.stack(confidences), had)})
    return rows


def attack_all(confidences: np.ndarray, had: np.ndarray) -> dict:
    """Each model attacked with all the others as its shadows; the scores of all attacks share one threshold."""
    attacks = []
    for target in range(len(had)):
        others = np.arange(len(had)) != target
        attacks.append((likelihood_ratios(confidences[target], confidences[others], had[others]), had[target]))
    scores, is_member = map(np.concatenate, zip(*attacks, strict=True))  # one attack with one threshold
    curve, area = roc(scores, is_member), attack_auc(scores, is_member)
    found = {"models": len(had), "records": had.shape[1], "auc": area.value, "auc_interval": [area.low, area.high]}
    for rate in (0.01, 0.001):
        hits = curve.true_positives_at(rate)
        found[f"tpr_at_{rate:g}"], found[f"tpr_at_{rate:g}_interval"] = hits.value, [hits.low, hits.high]
    return found


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="audits of each engine")
    parser.add_argument("--membership", action="store_true", help="attack adapters instead")
    parser.add_argument("--shadows", type=int, default=16, help="models with the study's noise, and as many without")
    parser.add_argument("--backbone", type=Path, help="use this one instead of pretraining one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draft = load_draft(EXAMPLE / "study.toml")
    with tempfile.TemporaryDirectory() as folder:
        backbone = options.backbone
        if backbone is None:
            backbone = Path(folder) / "backbone"
            pretrain(draft.record_schema(), backbone)
        if options.membership:
            rows = membership(draft, backbone, Path(folder), options.shadows)
        else:
            rows = power(with_targets(draft, ROWS["head + all parts"]), backbone, options.runs)
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.membership:
        print("| noise | AUC of the attack | TPR at 1 % FPR | TPR at 0.1 % FPR |\n|---|---|---|---|")
        for row in rows:
            figures = (
                f"{row[key]:.4f} [{row[f'{key}_interval'][0]:.4f}, {row[f'{key}_interval'][1]:.4f}]"
                for key in ("auc", "tpr_at_0.01", "tpr_at_0.001")
            )
            print(f"| {row['mode']} | {' | '.join(figures)} |")
    else:
        print(f"Claim {rows[0]['claim']:.2f}, largest bound {rows[0]['reach']:.2f}.\n")
        print("| engine | bounds | caught by the audit | caught by the checks |\n|---|---|---|---|")
        for row in rows:
            bounds = ", ".join(f"{bound:.2f}" for bound in row["bounds"])
            caught = f"{row['caught_by_audit']} of {row['runs']}"
            print(f"| {row['engine']} | {bounds} | {caught} | {', '.join(row['checks']) or 'none'} |")


if __name__ == "__main__":
    main()
