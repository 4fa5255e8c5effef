"""Renders the routing of a backbone as one HTML page, in the style of the budget report."""

from collections.abc import Sequence

from markupsafe import Markup

from ...models.evaluation.router_statistics import LayerRouting
from ...privacy.report import templating
from ...privacy.report.plot import Plot, linear, nice_top, ticks, whole_ticks
from .router_statistics import Routing

# Upper edges of the shades, in shares of a layer's choices over an even share; above the last is the darkest shade.
_EDGES = ((0.25, "< ¼"), (0.5, "½"), (0.8, "0.8"), (1.25, "1.25"), (2.0, "2"), (4.0, "4"))
_DARKEST = ("> 4", len(_EDGES))


def render_html(name: str, routing: Routing) -> str:
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


def heat_map(layers: Sequence[LayerRouting]) -> Markup:
    """Draws a cell for each layer and expert, the darker the more tokens; unused experts are crossed out."""
    row = 20 if len(layers) <= 24 else 11
    plot = Plot(width=720, height=58 + row * len(layers), left=58, right=14, top=26, bottom=32)
    experts = len(layers[0].choices)
    x = linear(0, experts, *plot.x_range)
    for place, layer in enumerate(layers):
        y = plot.y_range[1] + row * (place + 0.5)
        plot.text("tick", plot.left - 8, y + 4, f"layer {layer.layer}", "end")
        for expert, share in enumerate(layer.load):
            plot.bar(f"shade-{_shade(share * experts)}", x(expert), x(expert + 1), y, row)
            if not share:
                middle, half = x(expert + 0.5), min(4.0, (x(1) - x(0)) / 2)
                plot.line("unused", middle - half, y - half, middle + half, y + half)
                plot.line("unused", middle - half, y + half, middle + half, y - half)
    named = [(expert, f"{expert}") for expert in range(experts)] if experts <= 16 else whole_ticks(experts - 1)
    plot.x_axis("expert", lambda expert: x(expert + 0.5), named)
    plot.text("axis", plot.left, 10, "load over an even share:")
    at = plot.left + 150.0
    for name, shade in [*((name, shade) for shade, (_, name) in enumerate(_EDGES)), _DARKEST]:
        plot.bar(f"shade-{shade}", at, at + 18, 6, 11)
        plot.text("tick", at + 22, 10, name if shade in (0, _DARKEST[1]) else f"to {name}")
        at += 72
    worst = max(layers, key=lambda layer: layer.max_violation)
    story = (
        f"{len(layers)} layers of {experts} experts. The largest load is {worst.max_violation + 1:.2f} times an even "
        f"share, in layer {worst.layer}."
    )
    return plot.svg("heat", "Load of every expert, layer by layer", story)


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
