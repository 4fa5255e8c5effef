"""The frame of the pages that people open in a browser: who may enter, what a browser may do, and how a page looks.

A page is made on the server and works without a script; one small script of ours keeps what is marked as live up to
date. A browser may load nothing from elsewhere, run nothing else, and send forms only back to us. Whoever enters shows
a token, or opens a link that a command of the same account has just made and that works once.

>>> from confide.client_node.web import entering
>>> attempts = entering.Attempts(most=1, seconds=60.0)
>>> attempts.note_failure()
>>> attempts.wait_s() > 0
True
"""

__all__ = ["accounts", "child", "doors", "entering", "forms", "framing", "process", "rendering", "routing", "serving"]
