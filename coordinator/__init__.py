"""The operator"s side of a federation: who belongs to it, its studies and runs, and what comes of them."""

__all__ = ["cli", "demo", "federation", "fleet", "gateway", "results", "run", "store", "studies"]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.coordinator: write `import confide.coordinator`, not `import coordinator`"
    )
