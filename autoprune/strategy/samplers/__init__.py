"""Search strategies, one file each; every file registers its sampler in ``SAMPLERS``."""
