"""Frozen backbones and what is trained beside them: adapters, heads, records and metrics."""

__all__ = ["adapters", "backbones", "evaluation", "heads", "records"]

if "." not in __name__:
    raise ImportError("this folder is the package confide.models: write `import confide.models`, not `import models`")
