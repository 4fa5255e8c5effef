"""Routing of tokens to a model's experts: measured on public tokens, kept for a run, drawn.

`measuring` runs a backbone or a run's model over a public text or synthetic records, and `kept` stores what it found of
a run. `page` draws it. No site's record is read here.

A page about one layer with an unused expert:

>>> from confide.coordinator.routing import measuring, page
>>> from confide.models.evaluation.layer_routing import LayerRouting
>>> layer = LayerRouting(layer=1, tokens=3, choices=(3, 2, 1, 0), weights=(0.5, 0.3, 0.2, 0.0), token_entropy=0.9)
>>> routing = measuring.Routing("backbone", "ab" * 32, "a text", (layer,))
>>> text = page.render_html("backbone", routing)
>>> text.startswith("<!doctype html>"), layer.unused
(True, (3,))
"""

__all__ = ["kept", "measuring", "page"]
