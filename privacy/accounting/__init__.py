"""Epsilon and delta of releases: composition by PLD and RDP, and a third accountant for comparison."""
