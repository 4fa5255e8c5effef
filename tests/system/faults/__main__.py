"""Breaks a real federation in every named way, and writes what came of it into docs/faults.md.

    PYTHONPATH=tests python -m system.faults [GROUP...] [--folder FOLDER] [--rounds N]

Outcomes stay in FOLDER, so groups can be run one after the other, and what is there is not done again: for a fresh
start delete FOLDER/outcomes.jsonl. Needs Linux; a few groups need root.
"""

import argparse
from pathlib import Path

from .groups import GROUPS, run_groups
from .outcomes import Outcomes
from .page import write_page


def main() -> None:
    """Runs the groups of faults that the command line names, all without one."""
    parser = argparse.ArgumentParser(prog="python -m system.faults", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all without one")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"), help="of outcomes and federations")
    parser.add_argument("--most", type=int, help="faults of each group that are made now; all without it")
    parser.add_argument("--rounds", type=int, default=500, help="of the flatness run, 20 or more")
    parser.add_argument("--page", type=Path, default=Path("docs/faults.md"), help="that gets the tables")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    outcomes = Outcomes(asked.folder.resolve() / "outcomes.jsonl", most=asked.most)
    if unknown := set(asked.groups) - set(GROUPS):
        parser.error(f"no group is called {', '.join(sorted(unknown))}")
    run_groups(asked.groups or GROUPS, asked.folder.resolve(), outcomes, rounds=asked.rounds)
    write_page(asked.page, outcomes.read())


if __name__ == "__main__":
    main()
