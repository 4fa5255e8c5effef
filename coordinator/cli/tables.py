"""How the `coordinator` command shows things: tables and bars for people, rows for JSON."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...client_node.cli.tables import print_json
from ..store import Store
from ..store.states import RunState
from ..store.tables import Evaluation, Round, Run

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...models.backbones.loading import Description
    from ...models.evaluation.binned import ReliabilityBin
    from ...models.evaluation.metrics import Estimate
    from ...models.evaluation.router_statistics import LayerRouting
    from ...privacy.report.schema import AuditFacts
    from ..results.router_statistics import Routing

out, err = Console(), Console(stderr=True)


def show(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows as a table, or as JSON."""
    printer: Callable[[], None] = (lambda: print_json(rows)) if as_json else (lambda: print_table(title, rows))
    printer()


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows of equal keys as a table."""
    if not rows:
        out.print(f"{title}: none yet")
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))  # nodes' words are in it
    out.print(table)


def cell(value: object) -> object:
    """A value of a row as a table shows it."""
    return ", ".join(value) if isinstance(value, tuple) else value


def clock(seconds: float) -> str:
    """A time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def node_row(node: Any) -> dict[str, Any]:
    """A node as a table shows it."""
    state = "revoked" if node.revoked_at else "enrolled" if node.enrolled_at else "invited"
    return {"name": node.name, "roles": node.roles, "state": state, "identity": node.identity or ""}


def run_row(store: Store, run: Run) -> dict[str, Any]:
    """A run as a table shows it."""
    return {
        "run": run.id,
        "state": run.state,
        "rounds": store.last_round(run.id).number,
        "step": run.step if run.state == RunState.RUNNING else (run.error or ""),
        "started": clock(run.created_at),
    }


def round_row(
    row: Round | Evaluation, purpose: str, sites: tuple[str, ...], left_out: Mapping[int, tuple[str, ...]]
) -> dict[str, Any]:
    """What a round opened, for JSON."""
    summed, too_long = row.summed, left_out.get(row.number, ())
    return {
        "round": row.number,
        "purpose": purpose,
        "summed": summed,
        "too_long": too_long,
        "missing": tuple(site for site in sites if site not in summed and site not in too_long),
        "seconds": round(row.seconds, 1),
        "bytes_per_site": row.bytes_per_site,
        "committed": clock(row.committed_at),
    }


def estimate_texts(estimate: "Estimate | None") -> tuple[str, str]:
    """A metric and its interval as a table shows them."""
    if estimate is None:
        return "hidden by the noise", ""
    digits = 0 if estimate.value > 1 else 3
    return f"{estimate.value:.{digits}f}", f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def reliability_row(each: "ReliabilityBin") -> dict[str, Any]:
    """A bin of the score as a table shows it."""
    value, interval = estimate_texts(each.positives)
    return {
        "probability": f"{each.low:.3f} to {each.high:.3f}",
        "records": f"{100 * each.share.value:.1f} %",
        "positive": value,
        "95 % interval": interval,
    }


def backbone_row(name: str, found: "Description") -> dict[str, Any]:
    """A backbone as a table shows it."""
    return {
        "folder": name,
        "reads": found.reads,
        "parameters": f"{found.size.parameters:,}",
        "licence": found.origin.licence if found.origin else "not stated",
        "hash": found.hash,
    }


@contextmanager
def reading(tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, moved by the number of tokens read so far."""
    from rich.progress import Progress

    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("Reading", total=tokens)
        yield lambda read: progress.update(bar, completed=read)


def show_routing(name: str, found: "Routing", html: Path | None, as_json: bool) -> None:
    """A routing as a table, a page or JSON."""
    from ..results.router_page import render_html

    if html is not None:
        html.write_text(render_html(name, found), encoding="utf-8")
        err.print(f"Page written to {html}")
    if as_json:
        return print_json(found.to_dict())
    if html is None:
        read = f"{name}, {found.layers[0].tokens:,} tokens of {found.read}"
        print_table(escape(read), routing_rows(found.layers))


def routing_rows(layers: Sequence["LayerRouting"]) -> list[dict[str, Any]]:
    """Layers as a table shows them, the load of each expert as a bar, full at twice an even share."""
    return [
        {
            "layer": layer.layer,
            "load, expert by expert": bars([share * len(layer.load) / 2 for share in layer.load]),
            "entropy": f"{layer.entropy:.3f}",
            "max violation": f"{layer.max_violation:.2f}",
            "never chosen": len(layer.unused),
            "token entropy": f"{layer.token_entropy:.4f}",
        }
        for layer in layers
    ]


def bars(heights: Sequence[float]) -> str:
    """A bar for each height, a blank for 0 and the tallest for 1 and more; of more than 64, means of neighbours."""
    width = -(-len(heights) // 64)
    groups = [heights[start : start + width] for start in range(0, len(heights), width)]
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, math.ceil(8 * sum(group) / len(group)))] for group in groups)


def audit_rows(facts: "AuditFacts") -> list[dict[str, Any]]:
    """An audit as a table shows it."""
    found = {finding.check: finding.detail for finding in reversed(facts.findings)}
    bound = f"at least {facts.lower_bound:.3f} at {100 * facts.confidence:g} % confidence"
    guesses = f"{facts.right} of {facts.guesses} guesses about {facts.canaries} canaries right"
    return [
        {"check": "epsilon of a step", "claimed": f"{facts.claimed_epsilon:.3f}", "found": f"{bound}; {guesses}"},
        *({"check": name, "claimed": "", "found": found.get(name, "holds")} for name in facts.checks),
    ]
