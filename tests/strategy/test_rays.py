import numpy as np

from autoprune.strategy.rays import random_candidate
from autoprune.testing.samplers import MadeUpLatency, made_up_problem


def test_candidates_are_snapped_and_within_the_budget(problems):
    for problem in problems(30, monotone=False):
        rng = np.random.default_rng(0)
        for _ in range(5):
            candidate = random_candidate(problem, rng)
            assert problem.space.snap(candidate) == candidate
            top = max(problem.dense_ms, problem.fastest[1])
            assert problem.latency_ms([candidate])[0] <= top


def test_latencies_cover_the_range():
    problem = made_up_problem(10, 64, droppable=False, budget=0.6)
    rng = np.random.default_rng(0)
    drawn = [random_candidate(problem, rng) for _ in range(200)]
    low, high = problem.fastest[1], problem.budget_ms
    share = (problem.latency_ms(drawn) - low) / (high - low)
    counts, _ = np.histogram(share, bins=4, range=(0, 1))
    # Each quarter has Binomial(200, 1/4): 50 expected, below 22 with a probability under 1e-6.
    assert counts.sum() == 200
    assert counts.min() >= 22


def test_groups_and_blocks_vary_independently():
    problem = made_up_problem(6, 64, latency=MadeUpLatency(padding=4))
    rng = np.random.default_rng(0)
    drawn = [random_candidate(problem, rng) for _ in range(200)]
    drops = np.array([candidate.dropped for candidate in drawn])
    # Zero to three of six blocks, each equally likely: one is never dropped in 200 draws with a
    # probability of 0.75 ** 200 < 1e-24.
    assert drops.any(axis=0).all()
    assert drops.sum(axis=1).max() == 3
    # Directions are independent: of 100 correlations under 200 samples, none exceeds 0.5 by
    # chance with a probability above 1e-9; what couples ratios is the common latency.
    whole = np.array([candidate.ratios for candidate in drawn if not any(candidate.dropped)])
    assert np.std(whole, axis=1).mean() > 0.1
