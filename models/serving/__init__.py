"""Serving: one process answers many requests with one backbone and any of several adapters.

`engine.Engine` writes texts that begin and end at any time, all rows of a pass together; `rows` holds what is known of
their beginnings. `served.Served` is what is served: adapters by name, their heads, and the tokens of a request. `app`
answers HTTP as OpenAI's API does, `schema` says what a request may hold, `server` listens: the same at a site
(`client-node serve`) and at a coordinator (`coordinator adapter serve`). Nothing that is asked or answered is logged or
kept. `docs/serving.md` is the page for people.

What a request becomes does not depend on who asks beside it:

>>> from confide.models.serving import engine
>>> engine.Order(ids=(5, 6), weights=(1.0,), longest=4, ends=frozenset({2})).temperature
0.0
"""

__all__ = ["app", "engine", "rows", "schema", "served", "server"]
