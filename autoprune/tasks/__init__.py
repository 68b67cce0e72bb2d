"""What a network is scored on: data in three disjoint splits, and a metric."""
