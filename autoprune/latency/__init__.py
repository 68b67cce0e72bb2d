"""Operators and widths to milliseconds; knows no torch."""
