"""Writes the tables of docs/faults.md, between two marks, from outcomes."""

import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .outcomes import Outcome
from .points import POINTS

BEGIN, END = "<!-- begin: tables by make faults -->", "<!-- end: tables by make faults -->"
WITHIN_S = 30.0  # of the restart, or of the end of the fault, to the next commit
_GROUPS = {
    "kill": "kills", "kill, two": "two kills at once", "damage": "damaged files", "disk": "full disks", "link": "links",
    "halt": "halted processes", "clock": "clocks", "database": "databases",
    "kill, with noise": "kills with noise and charges",
    "flood": "floods", "flatness": "flatness",
}  # fmt: skip
_FAULTS = {"damage": "damaged file", "kill, with noise": "kill -9, with noise"}
_TARGETS = {"damage": "coordinator, site, aggregator", "kill, two": "each pair of the kinds above"}  # in one line
_MOST = 260  # characters of a sentence in a table


def write_page(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Replaces the tables in the page at `path`."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{tables(outcomes)}\n{END}{after}")


def tables(outcomes: Sequence[Outcome]) -> str:
    """All tables, as Markdown."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(each.group, []).append(each)
    parts = [
        _machine(outcomes),
        _summary([each for each in outcomes if each.group not in ("flood", "flatness")]),
        _left([each.group for each in outcomes]),
    ]
    if kills := groups.get("kill"):
        parts += ["### kill -9, point by point", _matrix(kills)]
    if pairs := groups.get("kill, two"):
        parts += ["### kill -9 of two at once", _plain(pairs)]
    if damages := groups.get("damage"):
        parts += ["### Damaged files", _damages(damages)]
    for name, title in (
        ("disk", "Full disks"),
        ("link", "Links"),
        ("halt", "Halted processes"),
        ("clock", "Clocks"),
        ("database", "A database that is away"),
    ):
        if found := groups.get(name):
            parts += [f"### {title}", _plain(found)]
    if floods := groups.get("flood"):
        parts += ["### Floods of strangers", _floods(floods)]
    if flatness := groups.get("flatness"):
        parts += ["### Flatness", _flatness(flatness)]
    return "\n\n".join(parts)


def _machine(outcomes: Sequence[Outcome]) -> str:
    loads = sorted(each.load for each in outcomes if each.load is not None)
    load = f", load average {loads[0]:.0f} to {loads[-1]:.0f} meanwhile" if loads else ""
    return (
        f"Made on {time.strftime('%Y-%m-%d', time.gmtime())} with Python {platform.python_version()}, on "
        f"{os.cpu_count()} cores that other work shares{load}. Seconds are this machine's; right and wrong are not."
    )


def _summary(outcomes: Iterable[Outcome]) -> str:
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for each in outcomes:
        fault = _FAULTS.get(each.group, each.fault)
        target = _TARGETS.get(each.group, each.target)
        groups.setdefault((each.group, fault, target), []).append(each)
    heads = (
        "fault", "of", "points", "s to the next commit: least, median, most", "within 30 s", "stopped with a sentence",
        "problems",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (_, fault, target), found in groups.items():
        done = [each for each in found if each.is_done]
        seconds = sorted(each.seconds for each in done if each.seconds is not None)
        spread = f"{seconds[0]:.1f}, {statistics.median(seconds):.1f}, {seconds[-1]:.1f}" if seconds else ""
        within = sum(value <= WITHIN_S for value in seconds)
        stopped = sum(each.seconds is None and bool(each.told) and not each.problems for each in done)
        problems = sum(bool(each.problems) for each in done)
        of = f"{len(done)}" if len(done) == len(found) else f"{len(done)} of {len(found)}"
        lines.append(f"| {fault} | {target} | {of} | {spread} | {within} | {stopped or ''} | {problems or 'none'} |")
    return "\n".join(lines)


def _left(groups: Sequence[str]) -> str:
    left = [title for group, title in _GROUPS.items() if group not in groups]
    return f"Groups not run: {', '.join(left) or 'none'}."


def _matrix(kills: Sequence[Outcome]) -> str:
    kinds = list(dict.fromkeys(each.target for each in kills))
    found = {(each.point, each.target): each for each in kills}
    lines = ["| point of the round | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    done = [point for point in POINTS if any((point.name, kind) in found for kind in kinds)]
    for point in done:
        cells = [_cell(found.get((point.name, kind))) for kind in kinds]
        lines.append(f"| {point.name} | " + " | ".join(cells) + " |")
    left = ", ".join(point.name for point in POINTS if point not in done) or "none"
    head = (
        f"Seconds from the restart to the next commit, at {len(done)} of {len(POINTS)} points. Points not run: {left}."
    )
    return head + "\n\n" + "\n".join(lines)


def _cell(each: Outcome | None) -> str:
    if each is None or not each.is_done:
        return "not run"
    if each.problems:
        return f"**{_short('; '.join(each.problems))}**"
    return "" if each.seconds is None else f"{each.seconds:.1f}"


def _damages(damages: Sequence[Outcome]) -> str:
    lines = ["| file | damage | what came of it |", "|---|---|---|"]
    for each in damages:
        came = (
            f"goes on, {each.seconds:.1f} s"
            if each.seconds is not None
            else f"`{_short(each.told)}`; then {each.mended}"
        )
        if not each.is_done:
            came = _short(each.told)
        lines.append(f"| {each.target} | {each.fault} | {came}{_bad(each)} |")
    return "\n".join(lines)


def _plain(found: Sequence[Outcome]) -> str:
    lines = ["| fault | of | point | rounds meanwhile | next commit after, s | said |", "|---|---|---|---|---|---|"]
    for each in found:
        seconds = "" if each.seconds is None else f"{each.seconds:.1f}"
        meanwhile = f"{each.figures['rounds meanwhile']:.0f}" if "rounds meanwhile" in each.figures else ""
        said = f"`{_short(each.told)}`" if each.told else ""
        lines.append(f"| {each.fault} | {each.target} | {each.point} | {meanwhile} | {seconds} | {said}{_bad(each)} |")
    return "\n".join(lines)


def _floods(found: Sequence[Outcome]) -> str:
    heads = ("flood", "s a round: quiet, decoy, attack", "attack over decoy", "attack over quiet", "problems")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for each in found:
        problems = _short("; ".join(each.problems) or each.told) or "none"
        cells = ["", "", ""]
        if each.figures:
            quiet, decoy, attack = (each.figures[name] for name in ("quiet", "decoy", "attack"))
            cells = [
                f"{quiet:.2f}, {decoy:.2f}, {attack:.2f}", f"{attack / decoy:.2f}", f"{attack / quiet:.2f}",
            ]  # fmt: skip
        lines.append(f"| {each.fault} | {' | '.join(cells)} | {problems} |")
    return "\n".join(lines)


def _flatness(found: Sequence[Outcome]) -> str:
    names = ["memory MiB", "descriptors", "threads", "files", "KiB"]
    parts = []
    for fault in dict.fromkeys(each.fault for each in found):
        of_it = [each for each in found if each.fault == fault]
        lines = [
            "| of | " + " | ".join(f"{name}: end, a round" for name in names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        for each in of_it:
            cells = [
                f"{each.figures[name]:g}, {round(each.figures[f'{name} a round'], 3) + 0.0:+g}"
                if name in each.figures
                else ""
                for name in names
            ]
            lines.append(f"| {each.target} | " + " | ".join(cells) + " |")
        problems = "; ".join(dict.fromkeys(problem for each in of_it for problem in each.problems)) or "none"
        seconds = of_it[0].figures["seconds"]
        head = f"{fault}, in {seconds:.0f} s; slopes over the last two thirds; problems: {problems}."
        parts.append("\n\n".join((head, "\n".join(lines))))
    return "\n\n".join(parts)


def _bad(each: Outcome) -> str:
    return f" **{_short('; '.join(each.problems))}**" if each.problems else ""


def _short(text: str) -> str:
    words = " ".join(text.split()).replace("|", "/").replace("`", "'")
    return words if len(words) <= _MOST else words[: _MOST - 3] + "..."
