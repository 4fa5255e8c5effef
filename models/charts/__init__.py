"""Charts: a reader that points at marks, measures them by the axis' own labels, and refuses what does not fit.

`drawing` draws made-up charts, of which `training` teaches a reader; no record is used. `reader` is the network,
`reading` turns what it points at into values or refuses the chart, by the axis' `labels` and the chart's `ink`;
`reports` says the values in words.

>>> from confide.models.charts import reports
>>> reports.said(10.4567, pixel=0.03), reports.said(45_678.0, pixel=140.0)
('10.46', '45700')
"""

__all__ = ["drawing", "ink", "labels", "reader", "reading", "reports", "training"]
