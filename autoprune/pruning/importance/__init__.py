"""Importance criteria, one file each; each registers itself in ``CRITERIA``."""
