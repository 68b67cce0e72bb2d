"""One file per export format; none knows another."""
