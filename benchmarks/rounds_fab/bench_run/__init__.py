"""App bundle of the round benchmark."""
