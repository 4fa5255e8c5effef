"""Kinds of record: what a study declares of them, and how cells become model inputs."""

from .prompts import PromptEncoder, PromptTemplate
from .schema import CategoricalField, Field, FlagField, NumericField, RecordSchema

__all__ = ["CategoricalField", "Field", "FlagField", "NumericField", "PromptEncoder", "PromptTemplate", "RecordSchema"]
