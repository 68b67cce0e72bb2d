"""Times kernels and networks on the machine at hand, or on a board through a kit to copy."""
