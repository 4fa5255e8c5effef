"""A site's side of a federation: what it approves, trains, charges and sends."""

__all__ = ["approval", "cli", "data", "enrolment", "policy", "shares", "study", "training", "wire"]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.client_node: write `import confide.client_node`, not `import client_node`"
    )
