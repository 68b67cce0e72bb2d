"""Ways to realise a plan, one file each; see :mod:`autoprune.pruning.realiser`."""
