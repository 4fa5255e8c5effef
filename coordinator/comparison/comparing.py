"""Compares the rungs of the ladder for a study, and writes the comparison as a page and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...client_node.files import write_private
from ...client_node.study import StudyDraft
from ..errors import StudyRefused
from .figures import Comparison, sum_up
from .ladder import DEFAULT_EPSILONS, NONE, RUNGS, Ladder, Watch, climb
from .page import render_html
from .task import read_task
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
    found = sum_up(ladder, tried, chosen, settings, cells)
    write_private(out / FIGURES, json.dumps(found.to_dict(), indent=1).encode())
    write_private(out / PAGE, render_html(found).encode())
    return found
