"""Secure aggregation: secret sharing, sealing, and the three parties that add shares up."""

__all__ = ["crypten", "links", "party", "sharing"]

if "." not in __name__:
    raise ImportError("this folder is the package confide.mpc: write `import confide.mpc`, not `import mpc`")
