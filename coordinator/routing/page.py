"""Draws routing, and renders that of a backbone as one HTML page, in the style of the budget report."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from ...models.evaluation.layer_routing import LayerRouting
from ...privacy.report import templating
from ...privacy.report.plot import Plot, linear, nice_top, ticks, whole_ticks

if TYPE_CHECKING:  # it takes torch to measure, and none to draw
    from .measuring import Routing

# Upper edges of the shades, in shares of a layer's choices over an even share; above the last is the darkest shade.
_EDGES = ((0.25, "< ¼"), (0.5, "½"), (0.8, "0.8"), (1.25, "1.25"), (2.0, "2"), (4.0, "4"))
_DARKEST = ("> 4", len(_EDGES))
_KEY = 72  # units from one key of a shade to the next


def render_html(name: str, routing: "Routing") -> str:
    """Renders the page; `name` is that of a backbone's folder, or of a run whose adapter is in place."""
    template = templating.templates(__name__).get_template("routing.html")
    layers = routing.layers
    return template.render(
        name=name,
        routing=routing,
        experts=len(layers[0].choices),
        top_k=sum(layers[0].choices) // layers[0].tokens,
        heat_map=heat_map(layers),
        load_curves=load_curves(layers),
    )


def heat_map(layers: Sequence[LayerRouting], *, width: float = 720, title: str = "Load of every expert") -> Markup:
    """Draws a cell for each layer and expert, which stands out by its tokens; unused experts are crossed out."""
    row, names = 20 if len(layers) <= 24 else 11, [*(name for _, name in _EDGES), _DARKEST[0]]
    a_row = max(1, int((width - 20) / _KEY))  # keys of shades
    top = 40 + 18 * (-(-len(names) // a_row))
    plot = Plot(width=width, height=top + 32 + row * len(layers), left=58, right=14, top=top, bottom=32)
    experts = len(layers[0].choices)
    x, cells, unused = linear(0, experts, *plot.x_range), defaultdict[int, list[tuple[float, float]]](list), []
    for place, layer in enumerate(layers):
        y = top + row * place
        plot.text("tick", plot.left - 8, y + row / 2 + 4, f"layer {layer.layer}", "end")
        for expert, share in enumerate(layer.load):
            cells[_shade(share * experts)].append((x(expert), y))
            if not share:
                unused.append((x(expert + 0.5), y + row / 2))
    for shade, corners in sorted(cells.items()):
        plot.cells(f"shade-{shade}", corners, x(1) - x(0), row)
    half = min(4.0, (x(1) - x(0)) / 2)
    for centre, height in unused:
        plot.line("unused", centre - half, height - half, centre + half, height + half)
        plot.line("unused", centre - half, height + half, centre + half, height - half)
    named = [(expert, f"{expert}") for expert in range(experts)] if experts <= 16 else whole_ticks(experts - 1)
    plot.x_axis("expert", lambda expert: x(expert + 0.5), named)
    _keys(plot, names, a_row)
    worst = max(layers, key=lambda layer: layer.max_violation)
    story = (
        f"{len(layers)} layers of {experts} experts. The largest load is {worst.max_violation + 1:.2f} times an even "
        f"share, in layer {worst.layer}. {len(unused) or 'No'} expert{'s' * (len(unused) != 1)} never chosen."
    )
    return plot.svg("heat", f"{title}, layer by layer", story)


def _keys(plot: Plot, names: Sequence[str], a_row: int) -> None:
    """Draws which shade stands for which load, above the cells."""
    plot.text("axis", 2, 12, "load over an even share:")
    for shade, name in enumerate(names):
        left, y = 2 + _KEY * (shade % a_row), 28 + 18 * (shade // a_row)
        plot.bar(f"shade-{shade}", left, left + 18, y, 11)
        plot.text("tick", left + 22, y + 4, name if shade in (0, _DARKEST[1]) else f"to {name}")


def load_curves(layers: Sequence[LayerRouting]) -> Markup:
    """Draws loads over an even share, from the busiest expert to the idlest: a level line if routing is even."""
    plot = Plot(width=720, height=240, left=40, right=74, top=26, bottom=38)
    experts = len(layers[0].choices)
    top = nice_top(max(layer.max_violation for layer in layers) + 1)
    x, y = linear(1, experts, *plot.x_range), linear(0, top, *plot.y_range)
    plot.y_axis("load over an even share", y, ticks(top))
    plot.x_axis("experts of a layer, the busiest first", x, [(1, "1"), *whole_ticks(experts)[1:]])
    plot.level("even", y(1))
    by_evenness = sorted(layers, key=lambda layer: layer.entropy)
    named = {by_evenness[-1].layer: "most", by_evenness[0].layer: "least"}  # a single layer is both
    for layer in reversed(by_evenness):
        loads = sorted(layer.load, reverse=True)
        places = [(x(place), y(load * experts)) for place, load in enumerate(loads, start=1)]
        plot.curve(named.get(layer.layer, "other"), places)
        if layer.layer in named:
            kind = named[layer.layer]
            plot.name(f"{kind}-name", places[-1][1], f"layer {layer.layer}")
    story = (
        f"Entropy of the load over that of an even one: {by_evenness[0].entropy:.3f} in layer {by_evenness[0].layer}, "
        f"the least even, and {by_evenness[-1].entropy:.3f} in layer {by_evenness[-1].layer}."
    )
    return plot.svg("loads", "Loads of the experts of each layer in falling order", story)


def _shade(times: float) -> int:
    return next((shade for shade, (edge, _) in enumerate(_EDGES) if times < edge), _DARKEST[1])
