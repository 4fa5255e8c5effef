"""The app bundle that Flower demands for a run. Nobody runs it."""
