"""Kinds of record: what a study declares of them, and how cells become model inputs."""

from .fields import AnyField, CategoricalField, FlagField, NumericField, RecordSchema

__all__ = [
    "AnyField",
    "CategoricalField",
    "FlagField",
    "NumericField",
    "RecordSchema",
    "cells",
    "fields",
    "kind",
    "kinds",
    "text",
]
