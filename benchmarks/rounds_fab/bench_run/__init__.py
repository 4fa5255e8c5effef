"""Bundle of the round benchmark."""
