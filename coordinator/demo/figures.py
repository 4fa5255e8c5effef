"""Makes the rows of the table with which a demo ends, from its outcome."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ...models.rounding import rounded_down, rounded_up

BUDGET = 4.0  # epsilon that each demo site guarantees for its data set
_Rows = list[tuple[str, str, str]]  # name, figure, what it is


def figures(outcome: dict[str, Any]) -> _Rows:
    """Makes the rows of the demo's table: first what a real federation would have, then what only a demo can compute.

    The membership attacks are left to the report: they find hardly more in a model without privacy, and show little.
    """
    if "auc_private" in outcome:
        measured, controls = _figures(outcome)
    elif "sound_derivations_private" in outcome:
        measured, controls = _formula_figures(outcome)
    elif "parses_private" in outcome:
        measured, controls = _program_figures(outcome)
    elif "exact_match_private" in outcome:
        measured, controls = _text_figures(outcome)
    else:
        measured, controls = _class_figures(outcome)
    return [
        *measured,
        *_privacy_figures(outcome),
        ("bytes a site and round", f"{outcome['bytes_per_site_round']:,}", "sealed shares"),
        ("seconds a round", f"{outcome['seconds_per_round']:.2f}", "median"),
        ("peak memory", f"{outcome['peak_memory_gib']:.1f} GiB", "all processes together"),
        ("controls", "", "on the sites' held-out records in one place, which only public records allow"),
        *((f"  {name}", value, text) for name, value, text in [*controls, *_rungs(outcome.get("ladder", []))]),
    ]


def _rungs(ladder: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Makes a row of each simpler model."""
    for row in ladder:
        own, bare = row["points"][0], row["points"][-1]
        if row["rung"] == "adapters":
            continue
        site = f" ({own['site']})" if own["site"] else ""
        how = f"{'same noise' if own['noise_multiplier'] else 'without noise'}{site}"
        if row["rung"] == "constant":
            how = "the same answer for everybody"
        yield row["name"], f"{own['value']:.3f}", how + (f"; {bare['value']:.3f} without" if bare is not own else "")


def _figures(outcome: dict[str, Any]) -> tuple[_Rows, _Rows]:
    """Figures of a classifier's quality: as the sites measured it, and the controls."""
    controls = [
        ("exact", f"{outcome['auc_private']:.3f}", _over_records(outcome["auc_private_interval"])),
        ("without privacy", f"{outcome['auc_nonprivate']:.3f}", "the same study without noise"),
        ("before", f"{outcome['auc_before']:.3f}", "the backbone under an untrained head"),
    ]
    return _as_measured(
        "AUC", outcome, "auc", f"; bins hide up to {outcome['auc_measured_binning'] or 0:.3f}"
    ), controls


def _share_figures(
    outcome: dict[str, Any], name: str, share: str, before: str, *others: tuple[str, str, str]
) -> tuple[_Rows, _Rows]:
    """Figures of a share that is right: as the sites measured it, and the controls.

    Args:
        name: of the share, for people.
        share: its name in the outcome.
        before: what the backbone was.
        others: further controls.
    """
    controls = [
        ("exact", f"{outcome[f'{share}_private']:.3f}", _over_records(outcome[f"{share}_private_interval"])),
        ("without privacy", f"{outcome[f'{share}_nonprivate']:.3f}", "the same study without noise"),
        ("before", f"{outcome[f'{share}_before']:.3f}", before),
        *others,
    ]
    return _as_measured(name, outcome, share, ""), controls


def _text_figures(outcome: dict[str, Any]) -> tuple[_Rows, _Rows]:
    measured, controls = _share_figures(
        outcome, "exact match", "exact_match", "the backbone as it was imported", _perplexity(outcome)
    )
    (name, value, text), *rest = controls
    return measured, [(name, value, f"{text}: completed word for word"), *rest]


def _program_figures(outcome: dict[str, Any]) -> tuple[_Rows, _Rows]:
    shares = {
        "boundaries": "right line breaks, brackets and ends where the program up to there is given",
        "preferred": "programs that are likelier than a copy of theirs with one error",
    }
    others = [
        (
            share,
            f"{outcome[f'{share}_private']:.3f}",
            f"{text}; {outcome[f'{share}_nonprivate']:.3f} without noise, {outcome[f'{share}_before']:.3f} before",
        )
        for share, text in shares.items()
        if f"{share}_private" in outcome  # errors may have a place in no program
    ]
    return _share_figures(
        outcome, "programs that parse", "parses", "the backbone, which knows public code alone", *others,
        _perplexity(outcome),
    )  # fmt: skip


# A metric of one task of several, beside its name for people.
_OF_A_TASK = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "mean_absolute_error": "mean error",
    "exact_match": "exact match",
    "perplexity": "perplexity",
}
_WHEN = ("private", "nonprivate", "before")


def _class_figures(outcome: dict[str, Any]) -> tuple[_Rows, _Rows]:
    tasks = []
    for metric, said in _OF_A_TASK.items():
        for task in _tasks_with(metric, outcome):
            private, nonprivate, before = (outcome[f"{metric}_{task}_{when}"] for when in _WHEN)
            said_of_it = f"{nonprivate:.3f} without noise, {before:.3f} before"
            tasks.append((f"{said} of {task}", f"{private:.3f}", said_of_it))
    name = "tasks right" if outcome.get("judged") == "tasks" else "right answers"
    return _share_figures(outcome, name, "accuracy", "the backbone under an untrained head", *tasks)


def _tasks_with(metric: str, outcome: dict[str, Any]) -> list[str]:
    """Names the tasks of a study that have a metric."""
    return [match[1] for key in outcome if (match := re.fullmatch(f"{metric}_(.+)_{_WHEN[0]}", key))]


def _formula_figures(outcome: dict[str, Any]) -> tuple[_Rows, _Rows]:
    lines = (
        "lines hold",
        f"{outcome['sound_derivations_private']:.3f}",
        f"of derivations, every numeric line; {outcome['sound_derivations_before']:.3f} before",
    )
    return _share_figures(
        outcome, "right answers", "accuracy", "the backbone, which knows public mathematics alone", lines
    )


def _perplexity(outcome: dict[str, Any]) -> tuple[str, str, str]:
    return (
        "perplexity",
        f"{outcome['perplexity_private']:.2f}",
        f"{outcome['perplexity_nonprivate']:.2f} without noise, {outcome['perplexity_before']:.3g} before",
    )


def _as_measured(name: str, outcome: dict[str, Any], metric: str, also: str) -> _Rows:
    """The figure of the sites' evaluation, whose interval is for other records and other noise of the histogram."""
    value = outcome[f"{metric}_measured"]
    if value is None:
        return [(name, "", "not measured by the sites: no evaluation, or its noise hides it")]
    low, high = outcome[f"{metric}_measured_interval"]
    text = f"95 % interval {low:.3f} to {high:.3f} over records and the counts' noise{also}: as the sites measured it"
    return [(f"[bold]{name}[/]", f"[bold]{value:.3f}[/]", text)]


def _over_records(interval: list[float]) -> str:
    return f"95 % interval {interval[0]:.3f} to {interval[1]:.3f} over records"


def _privacy_figures(outcome: dict[str, Any]) -> _Rows:
    if outcome["epsilon"] is None:
        return []
    bound = f"for every {outcome['unit']}, δ = {outcome['delta']:g}, even if one site colludes; cap {BUDGET:g}"
    spent, by_rdp = rounded_up(outcome["epsilon"]), rounded_up(outcome["epsilon_rdp"])
    audit = _audit_rows(outcome["audit"]) if outcome["audit"] else []
    return [
        ("ε guaranteed", rounded_up(outcome["epsilon_guaranteed"]), bound),
        ("  spent", spent, f"by PLD ({by_rdp} by RDP): if nothing was chosen or stopped by results"),
        *audit,
    ]


def _audit_rows(audit: dict[str, Any]) -> _Rows:
    found = "; ".join(finding["check"] for finding in audit["findings"]) or f"{len(audit['checks'])} checks hold"
    claim, bound = float(audit["claimed_epsilon"]), float(audit["lower_bound"])
    sure = f"{100 * float(audit['confidence']):g} % confidence"
    of = f"of {audit['guesses']}"
    return [
        ("  audited, a step", f"≥ {rounded_down(bound)}", f"{sure}, claimed {rounded_up(claim)}; {found}"),
        (
            "  attacked",
            f"{audit['right']} {of}",
            f"guesses right of who took part in such a step; without clip and noise {audit['right_unprotected']} {of}",
        ),
    ]
