"""Fine-tuning of pruned networks: they learn again, from data and from the unpruned network."""
