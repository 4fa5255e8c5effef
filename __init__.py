"""Confidential federated fine-tuning: many sites, one Mixture-of-Experts adapter, nobody's records."""

__version__ = "0.1.0"
