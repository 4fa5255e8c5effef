"""What reads the last states: the pooled classifier, and the losses of a record."""
