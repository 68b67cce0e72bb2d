"""Deep deterministic policy gradient in NumPy: an actor and a critic of three layers.

The networks are so small that NumPy is as fast as a framework, and the room stays free of torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float32

#: Adam's constants.
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
#: Half-width of the initial weights of the last layer: first actions are close to 0.5.
_LAST = 3e-3


@dataclasses.dataclass(frozen=True)
class Transitions:
    """Steps of one or more episodes, a row each.

    Attributes:
        states: What the agent saw.
        actions: What was done, in [0, 1].
        rewards: Reward of the step.
        following: What the agent saw next; anything after the last step.
        last: 1 after the last step of an episode, else 0.
    """

    states: Float32[np.ndarray, "n features"]
    actions: Float32[np.ndarray, "n 1"]
    rewards: Float32[np.ndarray, "n 1"]
    following: Float32[np.ndarray, "n features"]
    last: Float32[np.ndarray, "n 1"]

    def rows(self, index: np.ndarray) -> Transitions:
        """Return some of the steps."""
        return Transitions(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Transitions]) -> Transitions:
        """Return the steps of all parts."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Mlp:
    """Fully connected layers with ReLU between them; all parameters in one vector."""

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        """Draw weights and biases uniformly within one over the root of the inputs.

        Args:
            sizes: Width of the input, of each hidden layer and of the output.
            rng: Source of randomness.
        """
        self.shapes = list(itertools.pairwise(sizes))
        bounds = [fan_in**-0.5 for fan_in, _ in self.shapes[:-1]] + [_LAST]
        self.theta: Float32[np.ndarray, " parameters"] = np.concatenate(
            [
                rng.uniform(-bound, bound, (fan_in + 1) * fan_out)
                for bound, (fan_in, fan_out) in zip(bounds, self.shapes, strict=True)
            ]
        ).astype(np.float32)

    def forward(self, inputs: Float32[np.ndarray, "n inputs"]) -> list[Float32[np.ndarray, "n _"]]:
        """Return the inputs, what every hidden layer gives, and the outputs."""
        outputs = [inputs]
        layers = self._layers(self.theta)
        for number, (weight, bias) in enumerate(layers):
            value = outputs[-1] @ weight + bias
            outputs.append(np.maximum(value, 0.0) if number < len(layers) - 1 else value)
        return outputs

    def backward(
        self, outputs: list[Float32[np.ndarray, "n _"]], gradient: Float32[np.ndarray, "n out"]
    ) -> tuple[Float32[np.ndarray, " parameters"], Float32[np.ndarray, "n inputs"]]:
        """Return the gradient of the parameters and of the inputs.

        Args:
            outputs: What :meth:`forward` returned.
            gradient: That of the outputs.
        """
        result = np.empty_like(self.theta)
        layers, gradients = self._layers(self.theta), self._layers(result)
        for number in reversed(range(len(layers))):
            if number < len(layers) - 1:
                gradient = gradient * (outputs[number + 1] > 0)
            np.matmul(outputs[number].T, gradient, out=gradients[number][0])
            np.sum(gradient, axis=0, out=gradients[number][1])
            gradient = gradient @ layers[number][0].T
        return result, gradient

    def _layers(
        self, vector: Float32[np.ndarray, " parameters"]
    ) -> list[tuple[Float32[np.ndarray, "_ _"], Float32[np.ndarray, " _"]]]:
        """Return weight and bias of each layer as views of a vector."""
        views, start = [], 0
        for fan_in, fan_out in self.shapes:
            middle = start + fan_in * fan_out
            weight = vector[start:middle].reshape(fan_in, fan_out)
            start = middle + fan_out
            views.append((weight, vector[middle:start]))
        return views


class Adam:
    """Adam on one vector [Kingma2015adam].

    References:
        [Kingma2015adam] Kingma, Ba. Adam: A Method for Stochastic Optimization. ICLR 2015.
    """

    def __init__(self, size: int, rate: float) -> None:
        """Start with empty moments for vectors of that size."""
        self.rate = rate
        self._steps = 0
        self._mean = np.zeros(size, np.float32)
        self._square = np.zeros(size, np.float32)

    def step(self, theta: Float32[np.ndarray, " n"], gradient: Float32[np.ndarray, " n"]) -> None:
        """Move ``theta`` in place."""
        self._steps += 1
        self._mean += np.float32(1.0 - _BETA1) * (gradient - self._mean)
        self._square += np.float32(1.0 - _BETA2) * (gradient * gradient - self._square)
        root = np.sqrt(self._square)
        root *= np.float32((1.0 - _BETA2**self._steps) ** -0.5)
        root += np.float32(_EPSILON)
        np.divide(self._mean, root, out=root)
        root *= np.float32(self.rate / (1.0 - _BETA1**self._steps))
        theta -= root


@dataclasses.dataclass(frozen=True)
class Rates:
    """How an agent learns.

    Attributes:
        actor: Learning rate of the actor.
        critic: Learning rate of the critic.
        target: Share of the new parameters in the slowly moving copies, per update.
        discount: Factor on what follows a step.
        baseline: Share of a batch's mean reward in the moving baseline.
    """

    actor: float = 1e-4
    critic: float = 1e-3
    target: float = 0.01
    discount: float = 1.0
    baseline: float = 0.5


class Agent:
    """An actor that maps states to actions in [0, 1], and a critic [Lillicrap2016ddpg].

    Rewards are taken relative to a moving average of the batches' means, as AMC does.

    References:
        [Lillicrap2016ddpg] Lillicrap, Hunt, Pritzel, Heess, Erez, Tassa, Silver, Wierstra.
        Continuous control with deep reinforcement learning. ICLR 2016.
    """

    def __init__(
        self, features: int, *, hidden: int, rates: Rates, rng: np.random.Generator
    ) -> None:
        """Draw the networks.

        Args:
            features: Numbers in a state.
            hidden: Width of both hidden layers of both networks.
            rates: How it learns.
            rng: Source of randomness.
        """
        self.rates = rates
        self.actor = Mlp((features, hidden, hidden, 1), rng)
        self.critic = Mlp((features + 1, hidden, hidden, 1), rng)
        self._slow_actor = self.actor.theta.copy()
        self._slow_critic = self.critic.theta.copy()
        self._actor_adam = Adam(len(self.actor.theta), rates.actor)
        self._critic_adam = Adam(len(self.critic.theta), rates.critic)
        self._baseline: float | None = None

    def act(self, states: Float32[np.ndarray, "n features"]) -> Float32[np.ndarray, "n 1"]:
        """Return the actions of the current policy."""
        return sigmoid(self.actor.forward(states)[-1])

    def learn(self, batch: Transitions) -> None:
        """Update critic, actor and their slow copies once."""
        wanted = self._wanted(batch)
        outputs = self.critic.forward(np.hstack([batch.states, batch.actions]))
        error = (outputs[-1] - wanted) * np.float32(2.0 / len(wanted))
        self._critic_adam.step(self.critic.theta, self.critic.backward(outputs, error)[0])
        self._actor_adam.step(self.actor.theta, self.actor_gradient(batch.states))
        for slow, fast in (
            (self._slow_actor, self.actor.theta),
            (self._slow_critic, self.critic.theta),
        ):
            slow += np.float32(self.rates.target) * (fast - slow)

    def actor_gradient(
        self, states: Float32[np.ndarray, "n features"]
    ) -> Float32[np.ndarray, " parameters"]:
        """Return the gradient of minus the mean value of the actor's actions."""
        inner = self.actor.forward(states)
        actions = sigmoid(inner[-1])
        outputs = self.critic.forward(np.hstack([states, actions]))
        downhill = np.full_like(actions, -1.0 / len(actions))
        towards = self.critic.backward(outputs, downhill)[1][:, -1:]
        return self.actor.backward(inner, towards * actions * (1.0 - actions))[0]

    def _wanted(self, batch: Transitions) -> Float32[np.ndarray, "n 1"]:
        """Return what the critic should have said, by the slow copies."""
        mean = float(batch.rewards.mean())
        before = mean if self._baseline is None else self._baseline
        self._baseline = before + self.rates.baseline * (mean - before)
        actions = sigmoid(self._with(self.actor, self._slow_actor, batch.following))
        values = self._with(self.critic, self._slow_critic, np.hstack([batch.following, actions]))
        rewards = batch.rewards - np.float32(self._baseline)
        wanted: Float32[np.ndarray, "n 1"] = (
            rewards + np.float32(self.rates.discount) * (1 - batch.last) * values
        )
        return wanted

    @staticmethod
    def _with(
        network: Mlp,
        theta: Float32[np.ndarray, " parameters"],
        inputs: Float32[np.ndarray, "n inputs"],
    ) -> Float32[np.ndarray, "n 1"]:
        """Return a network's outputs with other parameters than its own."""
        own, network.theta = network.theta, theta
        outputs = network.forward(inputs)[-1]
        network.theta = own
        return outputs


def sigmoid(values: Float32[np.ndarray, "n 1"]) -> Float32[np.ndarray, "n 1"]:
    """Return the logistic function, in a form that does not overflow."""
    half: Float32[np.ndarray, "n 1"] = np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + 1)
    return half


def truncated_normal(mean: float, spread: float, uniform: float) -> float:
    """Return the quantile of a normal distribution that is cut to [0, 1].

    Args:
        mean: In [0, 1].
        spread: Standard deviation before the cut.
        uniform: In [0, 1), uniform for a random draw.
    """
    if spread < 1e-6:
        return mean
    normal = NormalDist(mean, spread)
    low, high = normal.cdf(0.0), normal.cdf(1.0)
    # inv_cdf is defined inside the open interval.
    share = min(max(low + uniform * (high - low), 1e-12), 1.0 - 1e-12)
    return min(max(normal.inv_cdf(share), 0.0), 1.0)
