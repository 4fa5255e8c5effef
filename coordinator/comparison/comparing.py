"""Compares the rungs of the ladder for a study, and writes the comparison as a page and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...client_node.files import write_private
from ...client_node.policy import SitePolicy
from ...client_node.study import Study, StudyDraft
from ...models.evaluation.metrics import Estimate
from ..errors import StudyRefused
from .figures import CONFIDENCE, Comparison, sum_up
from .ladder import DEFAULT_EPSILONS, NONE, OWN, RUNGS, Ladder, Watch, cell_of, climb
from .page import render_html
from .task import read_task, task_of
from .tried import Tried

PAGE, FIGURES = "ladder.html", "ladder.json"


def compare(
    draft: StudyDraft,
    records: Path,
    out: Path,
    *,
    seeds: int,
    adapter_seeds: int | None = None,
    backbone: Path | None = None,
    asked: Sequence[str] = (),
    rungs: Sequence[str] = (),
    unit_column: str | None = None,
    watch: Watch = lambda done, total, name: None,
) -> Comparison:
    """Runs what `out` does not hold yet, and writes `ladder.html` and `ladder.json` there.

    Args:
        records: public or synthetic, in the layout of `task`.
        seeds: runs of a rung at each noise. Seeds decide sampling and noise, but for adapters under privacy: their
            steps are those of a site and draw from the operating system.
        adapter_seeds: the same of adapters, which take minutes each; None: as many.
        backbone: its folder; None leaves out what reads one.
        asked: "study", "none" or epsilons; left out, `DEFAULT_EPSILONS`, or "none" alone for a study without privacy.
        rungs: of `RUNGS`; left out, all.

    Raises:
        DataInvalid: a cell does not fit.
        StateDamaged: what `out` holds cannot be read.
        StudyInvalid: no noise reaches an epsilon.
        StudyRefused: a site has no table, or there is no such rung or epsilon.
    """
    if unknown := [rung for rung in rungs if rung not in RUNGS]:
        raise StudyRefused(f"there is no rung {', '.join(unknown)}; there are {', '.join(RUNGS)}")
    task = read_task(draft, records, unit_column=unit_column)
    ladder, tried = Ladder(task, backbone), Tried(out)
    usual = (NONE,) if draft.privacy.mode == "none" else DEFAULT_EPSILONS
    settings = [ladder.setting(each) for each in dict.fromkeys(asked or usual)]
    chosen = [rung for rung in RUNGS if rung in rungs or not rungs]
    cells = climb(
        ladder, tried, chosen, settings, {**dict.fromkeys(RUNGS, seeds), "adapters": adapter_seeds or seeds}, watch
    )
    return _written(out, sum_up(ladder, tried, chosen, settings, cells))


def compare_with_run(
    study: Study,
    backbone: Path,
    train: Sequence[SitePolicy],
    held_out: Sequence[SitePolicy],
    out: Path,
    found: Mapping[str, Any],
) -> Comparison | None:
    """Sets the figures of a real run beside each simpler rung, climbed once at the study's noise and once without.

    Writes what `compare` does. An interrupted comparison goes on.

    Args:
        train: one policy a site, in the study's order, as are those of held-out records, which must be public.
        found: `METRIC_private` and `METRIC_private_interval` of the run, the same of `nonprivate`.

    Returns:
        None if no rung stands beside the adapters: nothing but a model that writes can answer, or a record is more
        than what linear models read of it.
    """
    names, draft = study.site_names(), study.draft
    task = task_of(study, *(dict(zip(names, part, strict=True)) for part in (train, held_out)))
    if task.target is None or draft.data.kind.files:
        return None
    ladder, tried = Ladder(task, backbone), Tried(out)
    settings = [ladder.setting(each) for each in ((NONE,) if draft.privacy.mode == "none" else (OWN, NONE))]
    simpler = [rung for rung in RUNGS if rung != "adapters"]
    cells = climb(ladder, tried, simpler, settings, dict.fromkeys(simpler, 1))
    for job in ladder.jobs(["adapters"], settings, {"adapters": 1}):
        is_bare = job.setting.asked == NONE and len(settings) > 1
        name = f"{ladder.figure}_{'nonprivate' if is_bare else 'private'}"
        low, high = found[f"{name}_interval"]
        cells.append(cell_of(ladder, job, Estimate(found[name], low, high, CONFIDENCE), seconds=0.0))
    return _written(out, sum_up(ladder, tried, list(RUNGS), settings, cells))


def _written(out: Path, found: Comparison) -> Comparison:
    """Writes a comparison as a page and as JSON, and returns it."""
    write_private(out / FIGURES, json.dumps(found.to_dict(), indent=1).encode())
    write_private(out / PAGE, render_html(found).encode())
    return found
