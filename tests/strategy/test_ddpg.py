import numpy as np
import pytest
import torch

from autoprune.strategy.ddpg import Adam, Agent, Mlp, Rates, Transitions, truncated_normal


def random_batch(rng, count=16, features=5):
    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    last = (rng.uniform(size=(count, 1)) < 0.3).astype(np.float32)
    actions = rng.uniform(size=(count, 1)).astype(np.float32)
    return Transitions(draw(count, features), actions, draw(count, 1), draw(count, features), last)


def twin(network):
    """Return PyTorch's network with the same parameters."""
    modules = []
    for weight, bias in network._layers(network.theta):
        linear = torch.nn.Linear(*weight.shape)
        linear.weight.data = torch.from_numpy(weight.T.copy())
        linear.bias.data = torch.from_numpy(bias.copy())
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def flat(parameters):
    """Return PyTorch's parameters (or gradients) in the order of ours."""
    return torch.cat([p.t().reshape(-1) for p in parameters]).detach().numpy()


def lively(sizes, seed):
    """Return a network whose last layer is not next to nothing."""
    network = Mlp(sizes, np.random.default_rng(seed))
    network._layers(network.theta)[-1][0][:] *= 100
    return network


def test_gradients_are_pytorchs():
    network, rng = lively((4, 8, 7, 2), 0), np.random.default_rng(1)
    inputs = rng.normal(size=(9, 4)).astype(np.float32)
    upstream = rng.normal(size=(9, 2)).astype(np.float32)
    outputs = network.forward(inputs)
    gradient, towards = network.backward(outputs, upstream)
    other, seen = twin(network), torch.from_numpy(inputs).requires_grad_()
    result = other(seen)
    result.backward(torch.from_numpy(upstream))
    assert outputs[-1] == pytest.approx(result.detach().numpy(), abs=1e-5)
    assert gradient == pytest.approx(flat(p.grad for p in other.parameters()), abs=1e-4)
    assert towards == pytest.approx(seen.grad.numpy(), abs=1e-5)
    assert np.abs(gradient).min(initial=1) < np.abs(gradient).max()


def test_adam_is_pytorchs():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=50).astype(np.float32)
    theirs = torch.from_numpy(ours.copy()).requires_grad_()
    adam, other = Adam(50, 1e-2), torch.optim.Adam([theirs], 1e-2)
    for _ in range(20):
        gradient = rng.normal(size=50).astype(np.float32)
        adam.step(ours, gradient)
        theirs.grad = torch.from_numpy(gradient)
        other.step()
    assert ours == pytest.approx(theirs.detach().numpy(), abs=1e-5)


def test_updates_are_those_of_ddpg_in_pytorch():
    rng = np.random.default_rng(3)
    rates = Rates(actor=1e-3, critic=1e-2, target=0.1, discount=0.9, baseline=0.5)
    agent = Agent(5, hidden=16, rates=rates, rng=rng)
    actor, critic, slow_actor, slow_critic = (
        twin(network) for network in (agent.actor, agent.critic, agent.actor, agent.critic)
    )
    actor_adam = torch.optim.Adam(actor.parameters(), 1e-3)
    critic_adam = torch.optim.Adam(critic.parameters(), 1e-2)
    baseline = None
    for _ in range(10):
        batch = random_batch(rng)
        agent.learn(batch)
        states, actions, rewards, following, last = (
            torch.from_numpy(getattr(batch, name))
            for name in ("states", "actions", "rewards", "following", "last")
        )
        mean = float(rewards.mean())
        baseline = mean if baseline is None else 0.5 * baseline + 0.5 * mean
        with torch.no_grad():
            after = torch.cat([following, slow_actor(following).sigmoid()], 1)
            wanted = rewards - baseline + 0.9 * (1 - last) * slow_critic(after)
        loss = (critic(torch.cat([states, actions], 1)) - wanted).square().mean()
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()
        actor_adam.zero_grad()
        (-critic(torch.cat([states, actor(states).sigmoid()], 1)).mean()).backward()
        actor_adam.step()
        with torch.no_grad():
            for slow, fast in ((slow_actor, actor), (slow_critic, critic)):
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.lerp_(q, 0.1)
    for ours, theirs in (
        (agent.actor.theta, actor),
        (agent.critic.theta, critic),
        (agent._slow_actor, slow_actor),
        (agent._slow_critic, slow_critic),
    ):
        # Adam turns rounding of gradients near 0 into steps of up to its rate.
        assert ours == pytest.approx(flat(theirs.parameters()), abs=2e-3)
    states = random_batch(rng).states
    acted = actor(torch.from_numpy(states)).sigmoid().detach().numpy()
    assert agent.act(states) == pytest.approx(acted, abs=1e-3)


def test_the_agent_learns_what_pays():
    rng = np.random.default_rng(0)
    agent = Agent(1, hidden=32, rates=Rates(actor=3e-3, critic=1e-2), rng=rng)
    for _ in range(400):
        states = rng.choice([0.0, 1.0], size=(32, 1)).astype(np.float32)
        actions = rng.uniform(size=(32, 1)).astype(np.float32)
        best = 0.2 + 0.6 * states
        ones = np.ones((32, 1), np.float32)
        agent.learn(Transitions(states, actions, -((actions - best) ** 2), states, ones))
    acted = agent.act(np.array([[0.0], [1.0]], np.float32))[:, 0]
    assert acted == pytest.approx([0.2, 0.8], abs=0.15)


def test_same_generator_same_agent():
    agents = [
        Agent(3, hidden=8, rates=Rates(), rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    assert (agents[0].actor.theta == agents[1].actor.theta).all()
    assert (agents[0].actor.theta != agents[2].actor.theta).any()


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [0.02, 0.5, 3.0])
def test_truncated_normal_has_the_cut_density(mean, spread):
    shares = (np.arange(2000) + 0.5) / 2000
    drawn = np.array([truncated_normal(mean, spread, float(share)) for share in shares])
    # The distribution by summing the density over a fine grid.
    grid = np.linspace(0, 1, 20001)
    density = np.exp(-0.5 * ((grid - mean) / spread) ** 2)
    below = np.cumsum(density) / density.sum()
    assert np.interp(drawn, grid, below) == pytest.approx(shares, abs=2e-3)


def test_no_spread_is_the_mean():
    assert truncated_normal(0.25, 1e-9, 0.9) == 0.25
