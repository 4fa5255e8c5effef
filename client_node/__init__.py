"""The site's side: keys, policy, data access, training step, daemon, command line."""
