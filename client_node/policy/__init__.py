"""A site's policy: site.toml, and the decisions that people make beside it."""
