"""Where candidates come from: the search space, the budget and the samplers. Imports no torch."""
