"""Differential privacy of a site: the mechanism, its accounting, the ledger, reports and audits."""

__all__ = ["accounting", "audit", "ledger", "mechanism", "report"]

if "." not in __name__:
    raise ImportError(
        "this folder is the package confide.privacy: write `import confide.privacy`, not `import privacy`"
    )
