"""The page of a site: what its node does, what waits for its people, and what was spent, in a browser of this machine.

`client-node run` starts its process (`process`); `app` puts the parts together. Every page and every form stands in the
table of `views` beside the command that does the same. `links` makes the links that let a browser in: what is decided
stands in the decision log under the login of whoever made the link. A decision that takes two people is made by
commands, which see who logged in.

>>> from confide.client_node.page import views
>>> views.VIEWS["/studies/{hash}/approve"].change
'study approve'
"""

__all__ = ["app", "links", "process", "views", "visits"]
