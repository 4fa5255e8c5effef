"""The operator's side: federation register, round driver, store, command line."""
