"""The operator's page: a federation at a glance, in a browser.

`coordinator serve` starts its process (`process`); `app` puts the parts together. Every page and every form stands in
the table of `views` beside the command that does the same, whose role it takes: what has no command is not served.
`visits` says who asks, `login` lets people in, and one file each shows runs, studies, budgets and so on, with the
functions that the commands call.

A page or form is looked up by its address:

>>> from confide.coordinator.page import views
>>> views.VIEWS["/runs/{run}"].command
'run rounds'
"""

__all__ = ["app", "process", "views", "visits"]
