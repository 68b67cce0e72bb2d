"""From a candidate to a smaller network."""
