"""A site's sealed shares on their way out, and an aggregator's on their way in."""
