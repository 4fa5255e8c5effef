"""The backbone, its adapters and heads: building, loading, saving, evaluation."""
