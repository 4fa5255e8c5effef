"""The app bundle that the SuperLink starts for a run."""
