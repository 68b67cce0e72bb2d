"""One file per runtime; none knows another."""
