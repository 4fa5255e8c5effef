"""Test bundle."""
