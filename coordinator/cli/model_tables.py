"""Prints backbones and adapters for the `coordinator` command: tables and bars for people, JSON for programs."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ...client_node.cli.console import err, out, print_json, print_rows, show_page, table_of, tell
from ...client_node.cli.tables import show_facts
from ...models.errors import InvalidBackbone
from ...models.evaluation.layer_routing import moved
from ...models.rounding import figures_up, rounded_up

if TYPE_CHECKING:  # torch takes seconds to import
    from ...models.adapters import ModelCard
    from ...models.adapters.carrying import Carry
    from ...models.adapters.combining import Combined
    from ...models.backbones.importing import Checked
    from ...models.backbones.loading import Description
    from ...models.backbones.moments import Taken
    from ...models.compression.compressing import Compressed
    from ...models.deployment.choosing import Option
    from ...models.deployment.deploying import Deployed
    from ...models.evaluation.layer_routing import LayerRouting
    from ..results.asking import Answers
    from ..routing.kept import KeptRouting
    from ..routing.measuring import Routing


def show_built(directory: Path, digest: str, routing: "Routing | None", as_json: bool) -> None:
    """Prints the folder of a backbone just built, its routing if there is any, and its hash alone on the last line."""
    if routing is not None:
        warn_of_unused(routing.layers)
    if as_json:
        layers = routing and routing.to_dict()["layers"]
        return print_json({"directory": str(directory), "hash": digest, "routing": layers})
    if routing is not None:
        out.print(f"Routing of {routing.layers[0].tokens:,} tokens of {routing.read}: {routing_line(routing.layers)}")
    out.print(f"Backbone written to {directory}. Give it to every site; studies name it by its hash:")
    print(digest)


def routing_line(layers: Sequence["LayerRouting"]) -> str:
    """Describes the routing of the least even layer, and how many experts of all layers no token was sent to."""
    worst = min(layers, key=lambda layer: layer.entropy)
    idle, experts = sum(len(layer.unused) for layer in layers), sum(len(layer.choices) for layer in layers)
    return (
        f"load entropy {worst.entropy:.3f}, max violation {worst.max_violation:.2f}; "
        f"{idle or 'none'} of {experts} experts never chosen"
    )


def warn_of_unused(layers: Sequence["LayerRouting"]) -> None:
    """Warns on stderr if there are experts that no token was sent to."""
    from ...models.evaluation.router_statistics import describe_experts, unused_by_layer

    if unused := unused_by_layer(layers):
        tell(
            f"Warning: no token was sent to {describe_experts(unused)}. Adapters there would take noise and learn "
            "nothing, and `coordinator study create` refuses them"
        )


def show_imported(
    directory: Path,
    found: "Description",
    left: Sequence[str],
    as_json: bool,
    *,
    logit_difference: float | None = None,
) -> None:
    """Prints what was imported, what was left behind, what study.toml may say next, and the hash on the last line.

    Args:
        logit_difference: to the source, of a model that was rewritten.
    """
    if as_json:
        facts = {"directory": str(directory), **asdict(found), "left": list(left)}
        return print_json(facts | ({} if logit_difference is None else {"logit_difference": logit_difference}))
    show_facts(escape(str(directory)), facts_of(found), as_json=False)
    if logit_difference is not None:
        tell(f"Its logits are the source's within {logit_difference:.1g}.")
    _tell_left(left)
    for line in _next_lines(directory, found):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    print(found.hash)


def show_checked(source: str, found: "Checked", as_json: bool) -> None:
    """Prints that a checkpoint can be imported, and what would be copied."""
    if as_json:
        return print_json({"source": source, **asdict(found)})
    _tell_left(found.left)
    out.print(
        f"{source} can be imported: {found.family}, {found.weight_bytes / 1e6:,.1f} MB of weights, "
        f"{len(found.copied)} files. Nothing was written.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _tell_left(left: Sequence[str]) -> None:
    if left:
        shown = ", ".join(left[:20]) + (f" and {len(left) - 20} more" if len(left) > 20 else "")
        tell(f"Left behind, not needed: {shown}")


def _next_lines(directory: Path, found: "Description") -> list[str]:
    """Writes the tables of study.toml that name the backbone: adapters in the last layers, where steps are fast."""
    said = "[[data.text.turns]], in its chat format" if found.has_chat_template else "[data.text]"
    return [
        "Next, in study.toml:",
        "[model]",
        f"backbone = {json.dumps(str(directory))}",
        "[adapter]",
        f"targets = {json.dumps(found.suggested_targets)} # of those above",
        f"layers = {json.dumps(found.suggested_layers)} # the last of {found.layers} that hold them; left out, all",
        'head = "lm"',
        f"# records: {said}; docs/study-toml.md, Free text",
        "Give the folder to every site; studies name it by its hash:",
    ]


def show_moments(directory: Path, taken: "Taken", as_json: bool) -> None:
    """Prints the folder with moments, and which states a study may read there."""
    if as_json:
        return print_json({"directory": str(directory), **asdict(taken)})
    out.print(f"Moments of {taken.texts:,} public texts written to {escape(str(directory))}, a backbone of its own:")
    out.print(f"  states: {', '.join(map(str, taken.reads))}")
    out.print(f"  checkpoint: {'linked, not copied' if taken.is_linked else 'copied: this disk takes no links'}")
    out.print("Give it to every site; studies name it by its hash:")
    print(taken.hash)


def show_compressed(directory: Path, found: "Compressed", as_json: bool) -> None:
    """Prints the sizes of a backbone that was made smaller, what that cost, and its hash alone on the last line."""
    if as_json:
        return print_json({"directory": str(directory), **found.to_dict()})
    facts = {
        "parameters": f"{found.parameters:,}, {found.times:.2f} times fewer than {found.parameters_before:,}",
        **{name.replace("_", " "): size for name, size in asdict(found.sizes).items() if size is not None},
        found.measure: f"{found.before:.4f} of the whole, {found.cut:.4f} when cut, {found.after:.4f} now",
    }
    show_facts(f"Backbone written to {escape(str(directory))}", facts, as_json=False)
    out.print("It is a backbone of its own. Give it to every site; studies name it by its hash:")
    print(found.hash)


def show_carried(directory: Path, found: "Carry", as_json: bool) -> None:
    """Prints the folder of an adapter that was carried over, and what was left behind."""
    if as_json:
        facts = {"directory": str(directory), "numbers": found.numbers, "numbers_before": found.numbers_before}
        return print_json(facts | {"provenance": found.provenance.model_dump(mode="json")})
    out.print(
        f"Adapter of {found.numbers:,} numbers, before {found.numbers_before:,}, written to {escape(str(directory))}"
    )
    if found.has_lost_prototype:
        out.print("It has no prototype: that said how the whole backbone reads records")


def show_backbones(folder: Path, found: "Mapping[str, Description | InvalidBackbone]", as_json: bool) -> None:
    """Prints backbones by the names of their folders; problems of unusable ones go to stderr."""
    if as_json:
        facts = {
            name: {"problem": str(of)} if isinstance(of, InvalidBackbone) else asdict(of) for name, of in found.items()
        }
        return print_json([{"directory": str(folder / name), **of} for name, of in facts.items()])
    good = {name: of for name, of in found.items() if not isinstance(of, InvalidBackbone)}
    rows = [backbone_row(name, of) for name, of in good.items()]
    print_rows(f"Backbones in {escape(str(folder))}", rows)
    for name in sorted(found.keys() - good.keys()):
        tell(f"Cannot be used: {found[name]}")


def backbone_row(name: str, found: "Description") -> dict[str, Any]:
    """Makes the table row of a backbone."""
    return {
        "folder": name,
        "reads": found.reads,
        "family": found.family,
        "parameters": f"{found.size.parameters:,}",
        "experts": experts_of(found),
        "chat template": "yes" if found.has_chat_template else "no",
        "licence": found.origin.licence if found.origin else "not stated",
        "targets": ", ".join(found.targets),
        "hash": found.hash,
    }


def experts_of(found: "Description") -> str:
    """Tells how many routed experts a layer has, and how many of them a token meets."""
    return "none" if found.experts is None else f"{found.top_k} of {found.experts}"


def facts_of(found: "Description") -> dict[str, str]:
    """Describes a backbone for people: family, size, what adapters may sit on, licence and origin."""
    origin = found.origin.to_dict() if found.origin else {"licence": "not stated", "origin": "not stated"}
    facts = {
        "hash": found.hash,
        "family": found.family,
        "reads": found.reads,
        "chat template": "yes" if found.has_chat_template else "no",
        "layers": str(found.layers),
        "moments of states": ", ".join(map(str, found.moments)) or "none",
        "experts": experts_of(found),
        "targets": ", ".join(found.targets),
        "parameters": f"{found.size.parameters:,}",
        "active per token": f"{found.size.active_parameters:,}",
        "weights": f"{found.size.weight_bytes / 1e6:,.1f} MB",
        **origin,
    }
    return {name.replace("_", " "): value for name, value in facts.items()}


def show_backbone(
    directory: Path, found: "Description", routing: "Routing | None", made_of: str | None, as_json: bool
) -> None:
    """Prints a backbone: hash, size, licence, origin, and its routing if it was measured.

    Args:
        made_of: hash of the larger backbone that it was made of; None if it was not.
    """
    if routing is not None:
        warn_of_unused(routing.layers)
    if as_json:
        layers = routing and routing.to_dict()["layers"]
        smaller = {} if made_of is None else {"made_of": made_of}
        return print_json({"directory": str(directory), **asdict(found), **smaller, "routing": layers})
    smaller = {} if made_of is None else {"made smaller from": made_of}
    show_facts(escape(str(directory)), facts_of(found) | smaller | {"routing": _routing(found, routing)}, as_json=False)


def _routing(found: "Description", routing: "Routing | None") -> str:
    if routing is not None:
        return routing_line(routing.layers)
    return "none: the model has no routed experts" if found.experts is None else "coordinator backbone routing"


def show_written(what: str, directory: Path, card: "ModelCard", as_json: bool) -> None:
    """Prints the folder to which a run's adapter or merged model was written."""
    if as_json:
        return print_json({"directory": str(directory), **asdict(card)})
    out.print(f"{what} after round {card.rounds} written to {directory}")


def show_deployed(directory: Path, found: "Deployed", as_json: bool) -> None:
    """Prints the folder of a deployed model, its size, and how it is asked."""
    made = found.deployment
    if as_json:
        facts = {"study": made.study, "runtime": made.runtime, "weights": made.weights, "bytes": found.bytes}
        return print_json({"directory": str(directory), "target": found.target, **facts})
    out.print(
        f"Model of {made.study} written to {directory}: {found.bytes / 1e6:,.1f} MB, {made.weights} by {made.runtime}"
    )
    start = "python start.py &\n  " if found.target == "triton" else ""
    out.print(
        f"Ask it, also where confide is not installed:\n  cd {directory}\n  pip install -r requirements.txt\n  {start}"
        "python ask.py --help"
    )


def show_options(found: Sequence["Option"], run: str | None, as_json: bool) -> None:
    """Prints the ways to run a model, the best first, and why."""
    if as_json:
        return print_json([asdict(option) for option in found])
    first, *others = found
    if first.misfits:
        out.print("No way suits all that was asked for. The nearest:")
    out.print(f"{first.runtime}: {first.why}")
    out.print(f"  about {first.milliseconds:.3g} ms and {first.megabytes:,.0f} MB; meant for {first.use}")
    for misfit in first.misfits:
        out.print(f"  but it {misfit}")
    out.print(f"  {first.command.replace('RUN', run or 'RUN')}", markup=False)
    rows = [
        {
            "runtime": each.runtime, "meant for": each.use, "about ms": f"{each.milliseconds:.3g}",
            "about MB": f"{each.megabytes:,.0f}", "suits": "; ".join(each.misfits) or "yes",
        }
        for each in others
    ]  # fmt: skip
    print_rows("Others", rows)


def show_combined(directory: Path, found: "Combined", *, is_exact: bool, as_json: bool) -> None:
    """Prints the folder of a combined adapter, and its loss if it was cut to a smaller rank."""
    if as_json:
        return print_json(
            {
                "directory": str(directory),
                "rank": found.adapter.rank,
                "relative_error": found.relative_error,
                "error_of": dict(found.error_of),
            }
        )
    lost = "exact" if is_exact else f"relative error {found.relative_error:.3g} (Frobenius)"
    out.print(f"Adapter of rank {found.adapter.rank}, {lost}, written to {directory}")
    if found.adapter.head is None:
        out.print("It has no head: not all of them have one")


def show_answers(found: "Answers", as_json: bool) -> None:
    """Prints each answer with the share that each study has in it, and what their epsilons add up to."""
    if as_json:
        return print_json(found.to_dict())
    rows = []
    for number, each in enumerate(found.answers, start=1):
        shares = {} if each.weights is None else dict(zip(found.studies, each.weights, strict=True))
        row: dict[str, Any] = {"#": number, **{study: f"{share:.2f}" for study, share in shares.items()}}
        if each.weights is not None:
            row["(backbone)"] = f"{max(0.0, 1 - sum(each.weights)):.2f}"
        if each.outputs is not None:
            row["(answer)"] = ", ".join(f"{value:.4g}" for value in each.outputs)
        if each.text is not None:
            row["(answer)" if each.outputs is None else "(text)"] = escape(each.text)
        rows.append(row)
    out.print(table_of("Answers, and each study's share in them", rows))
    if found.meaning:
        out.print(found.meaning, highlight=False, markup=False)
    if found.lost:
        out.print(f"Never chosen, as their prototypes are lost in their noise: {', '.join(found.lost)}")
    for spent in found.spent:
        studies = "this study" if spent.studies == 1 else f"all {spent.studies} studies"
        out.print(
            f"For one {spent.unit} in {studies}, at most epsilon {rounded_up(spent.epsilon, 3)} at delta "
            f"{figures_up(spent.delta)}, for these answers and any others",
            highlight=False,
        )
    if found.unbounded:
        out.print(f"Nothing bounds what is told about the records of {', '.join(found.unbounded)}")


def show_evaluation(found: Mapping[str, Any], as_json: bool) -> None:
    """Prints every metric with its interval, a line each."""
    if as_json:
        return print_json(found)
    for metric in (name for name in found if name != "records"):
        value, low, high = (found[metric][bound] for bound in ("value", "low", "high"))
        out.print(f"{metric.replace('_', ' '):17s} {value:.4f}  [{low:.4f}, {high:.4f}]")


def show_suite(found: Mapping[str, Any], as_json: bool) -> None:
    """Prints the metrics of each task, with their standard errors or intervals, and what the sites have measured."""
    if as_json:
        return print_json(found)
    rows = [
        {"task": task, "records": told["records"], "metric": metric, "value": _with_error(value)}
        for task, told in found["tasks"].items()
        for metric, value in told.items()
        if metric != "records"
    ]
    print_rows("By lm-evaluation-harness", rows)
    for metric, value in found.get("measured_by_sites", {}).items():
        if value is not None:
            out.print(f"Measured by the sites, and charged: {metric.replace('_', ' ')} {_with_error(value)}")


def _with_error(value: Mapping[str, Any]) -> str:
    if "low" in value:
        return f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
    error = value["standard_error"]
    return f"{value['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")


@contextmanager
def bar(title: str, total: int | None = None, *, is_bytes: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a progress bar on stderr; the yielded function takes the amount done and, if known, the total.

    Args:
        is_bytes: True for bytes: it shows them, their speed, and the time that is left.
    """
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    more = (DownloadColumn(), TransferSpeedColumn()) if is_bytes else ()
    with Progress(*Progress.get_default_columns(), *more, console=err, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)


@contextmanager
def reading(tokens: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr; the yielded function takes the number of tokens read so far."""
    with bar("Reading", tokens) as progress:
        yield lambda read: progress(read, tokens)


def show_routing(name: str, found: "Routing", html: Path | None, as_json: bool) -> None:
    """Prints a routing as a table or JSON, or writes it as a page."""
    from ..routing.page import render_html

    read = f"{name}, {found.layers[0].tokens:,} tokens of {found.read}"
    warn_of_unused(found.layers)
    show_page(
        "Page",
        found.to_dict(),
        page=lambda: render_html(name, found),
        table=lambda: out.print(table_of(escape(read), routing_rows(found.layers))),
        html=html,
        as_json=as_json,
    )


def show_kept_routing(run: str, found: "KeptRouting", as_json: bool) -> None:
    """Prints how far a run's training has moved the routing of public tokens, as a table or JSON."""
    if as_json:
        return print_json({"run": run, **found.model_dump(mode="json")})
    rows = [
        {
            "layer": after.layer,
            "moved": f"{100 * moved(before, after):.1f} %",
            "entropy before": f"{before.entropy:.3f}",
            "after": f"{after.entropy:.3f}",
            "never chosen before": len(before.unused),
            "now": len(after.unused),
        }
        for before, after in found.layers
    ]
    title = f"{escape(run)} after round {found.round}, {found.before[0].tokens:,} tokens of {escape(found.read)}"
    out.print(table_of(title, rows))


def routing_rows(layers: Sequence["LayerRouting"]) -> list[dict[str, Any]]:
    """Makes the table rows of layers, with the load of each expert as a bar, full at twice an even share."""
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
    """Draws a bar for each height, blank for 0 and full from 1 on; more than 64 are averaged with their neighbours."""
    width = -(-len(heights) // 64)
    groups = [heights[start : start + width] for start in range(0, len(heights), width)]
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, math.ceil(8 * sum(group) / len(group)))] for group in groups)
