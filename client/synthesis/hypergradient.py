"""How a validation loss judges the architecture of a generator: a hypergradient of two hops, by finite differences.

GenSeg (Zhang et al. 2025, doi 10.1038/s41467-025-61754-6) couples three stages, of generator weights θ, segmenter
weights S and architecture A. Each stage is taken to be one step of gradient descent::

    θ' = θ − η_G ∇_θ L_gen(θ, A)
    S' = S − η_S ∇_S [ L_train(S) + γ L_syn(S; θ', A) ]
    A  ← A − η_A d/dA L_val(S'(θ'(A), A))

The last derivative holds second derivatives, multiplied by a vector. Each such product is measured as the difference of
two first derivatives, as in DARTS (Liu et al. 2019, arXiv 1806.09055, equation 8), so that no graph of second order is
built. With ``v = ∇ L_val(S')``, ``S± = S ± ε v`` and ``ε = probe / ‖v‖``, ``θ± = θ ± ε₂ u`` and ``ε₂ = probe / ‖u‖``::

    u        = −η_S γ [ ∇_θ L_syn(S+; θ', A) − ∇_θ L_syn(S−; θ', A) ] / 2ε        validation → weights of the generator
    direct   = −η_S γ [ ∇_A L_syn(S+; θ', A) − ∇_A L_syn(S−; θ', A) ] / 2ε        A acts on the images themselves
    indirect = −η_G   [ ∇_A L_gen(θ+, A)     − ∇_A L_gen(θ−, A)     ] / 2ε₂       weights of the generator → A

A may be whatever the losses depend on: the operators of a generator, or a few knobs. Knobs have no weights between them
and the images, and so no second hop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor]
"""A scalar of the modules as they stand when it is called."""
Gradient = tuple[Tensor, ...]
"""One tensor for each parameter, of its shape."""
Source = np.random.Generator | torch.Generator
"""What a loss draws from."""


@dataclass(frozen=True)
class HypergradientSettings:
    """The steps that are looked ahead.

    Parameters
    ----------
    segmenter_rate, generator_rate
        η_S and η_G, above 0 and at least 0: rates of the plain gradient steps of segmenter and generator.
    gamma
        γ, at least 0: weight of the synthetic loss. At 0 the hypergradient is 0.
    probe
        Length of the displacement by which a second derivative is measured: the L2 norm over all weights of a network.
    """

    segmenter_rate: float
    generator_rate: float = 0.0
    gamma: float = 1.0
    probe: float = 0.01

    def __post_init__(self) -> None:
        if not (self.probe > 0 and self.segmenter_rate > 0 and self.generator_rate >= 0 and self.gamma >= 0):
            raise ValueError(f"rates and gamma cannot be below 0, the segmenter's rate and the probe not 0: {self}")


@dataclass(frozen=True)
class Hypergradient:
    """What the architecture should move against.

    Parameters
    ----------
    direct
        Through the images at fixed weights of the generator; one tensor for each of the architecture's.
    indirect
        Through the step of the generator's weights; zeros without a generator.
    hop
        ``‖u‖``: how much of the validation loss arrives at the generator's weights. 0 where the chain is cut.
    validation
        Validation loss after the looked-ahead step of the segmenter.
    """

    direct: Gradient
    indirect: Gradient
    hop: float
    validation: float

    @property
    def total(self) -> Gradient:
        """Sum of both parts, for the ``grad`` of each of the architecture's tensors."""
        return tuple(one + other for one, other in zip(self.direct, self.indirect, strict=True))


def hypergradient(
    training_loss: Loss | None,
    synthetic_loss: Loss,
    validation_loss: Loss,
    generator_loss: Loss | None,
    *,
    segmenter: nn.Module,
    generator: nn.Module | None,
    architecture: Sequence[Tensor],
    settings: HypergradientSettings,
    bystanders: Sequence[nn.Module] = (),
    generators: Sequence[Source] = (),
) -> Hypergradient:
    """Derivative of the validation loss by the architecture, through a step of the generator and one of the segmenter.

    Whatever happens, parameters and buffers of every module are put back bit for bit, and so is torch's global
    randomness; no ``grad`` is written. A loss that is asked again draws the same numbers as before. Every time it finds
    the buffers that the modules came with. Losses belong in single precision at least: of gradients in half precision
    the difference is mostly rounding.

    Parameters
    ----------
    training_loss
        Of the segmenter on real training pairs; None for none.
    synthetic_loss
        Of the segmenter on what the generator makes, without γ. The graph has to lead from it back to the generator and
        the architecture.
    validation_loss
        Of the segmenter on the validation pairs.
    generator_loss
        What the weights of the generator are trained with; None where they stay as they are, and there is no second
        hop.
    segmenter, generator
        The networks that the losses read; the generator is None where there is none. Their weights are what requires a
        gradient. The architecture may lie among the generator's parameters and is none of its weights.
    architecture
        A: leaf tensors that require a gradient, at least one.
    settings
        Rates, γ and the length of the probes.
    bystanders
        Other modules that the losses call and whose buffers must not move, such as a discriminator.
    generators
        What the losses draw from, beyond torch's global generators. Afterwards they stand as if each loss had been
        asked once, so that the next call draws other numbers.

    Raises
    ------
    ValueError
        If the synthetic loss leads back neither to weights of the generator nor to the architecture: images that were
        detached can learn nothing from validation. If there is no architecture, or the segmenter has no weights.
    FloatingPointError
        If a gradient on the way is not finite.
    """
    architecture = tuple(architecture)
    weights = _weights(segmenter, architecture)
    theta = () if generator is None or generator_loss is None else _weights(generator, architecture)
    if not architecture or not weights:
        raise ValueError("there is no architecture to judge, or no weight of a segmenter to judge it by")
    eta, gamma = settings.segmenter_rate, settings.gamma
    modules = [module for module in (segmenter, generator, *bystanders) if module is not None]
    with _Bench((*weights, *theta), modules, generators, settings.probe) as bench:
        if generator_loss is not None:
            bench.move(theta, bench.gradient(generator_loss, theta), -settings.generator_rate)
        step = tuple(gamma * one for one in bench.gradient(synthetic_loss, weights))
        if training_loss is not None:
            real = bench.gradient(training_loss, weights)
            step = tuple(one + other for one, other in zip(real, step, strict=True))
        bench.move(weights, step, -eta)
        v, validation = bench.gradient(validation_loss, weights), bench.value
        both, reached = bench.product(synthetic_loss, (*theta, *architecture), weights, v, -eta * gamma)
        if not reached:
            raise ValueError(
                "the synthetic loss leads back to no weight of the generator and to no architecture: is it detached?"
            )
        u, direct = both[: len(theta)], both[len(theta) :]
        indirect = tuple(torch.zeros_like(one) for one in direct)
        if generator_loss is not None:
            indirect, _ = bench.product(generator_loss, architecture, theta, u, -settings.generator_rate)
        found = Hypergradient(direct, indirect, _norm(u), validation)
    if not math.isfinite(_norm(found.total)):
        raise FloatingPointError("the hypergradient is not finite")
    return found


class _Bench:
    """Where weights are moved and losses asked; on leaving, everything is where it was.

    Parameters
    ----------
    weights
        What may be moved.
    modules
        Whose buffers are kept.
    sources
        What losses draw from, beyond torch's global generators.
    length
        Of a probe.
    """

    def __init__(
        self, weights: Sequence[Tensor], modules: Sequence[nn.Module], sources: Sequence[Source], length: float
    ) -> None:
        self._home = {one: one.detach().clone() for one in weights}
        self._buffers = [(module, {name: one.clone() for name, one in module.named_buffers()}) for module in modules]
        self._sources, self._length = tuple(sources), length
        self._device = next((one.device for one in weights if one.is_cuda), None)
        self._at_first = self._latest = self._states()
        self._starts: dict[int, _States] = {}
        self.value = math.nan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._settle(tuple(self._home))
        self._restore_buffers()
        self._rewind(self._at_first._replace(sources=self._latest.sources))

    def move(self, weights: Sequence[Tensor], by: Sequence[Tensor], times: float) -> None:
        """Put each of `weights` at its origin plus `times` its entry of `by`."""
        with torch.no_grad():
            for one, way in zip(weights, by, strict=True):
                one.copy_(self._home[one] + times * way)

    def gradient(self, loss: Loss, by: Sequence[Tensor]) -> Gradient:
        """Gradient of `loss` where the weights are now, 0 for what it does not lead to; its value stays in `value`."""
        return tuple(
            torch.zeros_like(one) if way is None else way for one, way in zip(by, self._ask(loss, by), strict=True)
        )

    def product(
        self, loss: Loss, by: Sequence[Tensor], weights: Sequence[Tensor], way: Sequence[Tensor], times: float
    ) -> tuple[Gradient, bool]:
        """`times` the derivative, along `way` in the space of `weights`, of the gradient of `loss` by `by`.

        Returns
        -------
        tuple
            The product, and whether `loss` leads back to anything in `by`; yes where nothing had to be asked.

        Raises
        ------
        FloatingPointError
            If `way` is not finite.
        """
        length = _norm(way)
        if not math.isfinite(length):
            raise FloatingPointError("the gradient to probe along is not finite")
        if length == 0:
            return tuple(torch.zeros_like(one) for one in by), True
        reach = self._length / length
        self.move(weights, way, reach)
        ahead = self._ask(loss, by)
        self.move(weights, way, -reach)
        behind = self._ask(loss, by)
        self._settle(weights)
        found = tuple(
            torch.zeros_like(one) if plus is None or minus is None else (plus - minus) * (times / (2 * reach))
            for one, plus, minus in zip(by, ahead, behind, strict=True)
        )
        return found, any(one is not None for one in ahead)

    def _ask(self, loss: Loss, by: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        first = id(loss) not in self._starts
        self._restore_buffers()
        self._rewind(self._starts.setdefault(id(loss), self._latest))
        with torch.enable_grad():
            value = loss()
            found = torch.autograd.grad(value, tuple(by), allow_unused=True)
        if first:
            self._latest = self._states()
        self.value = value.item()
        return found

    def _settle(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for one in weights:
                one.copy_(self._home[one])

    def _restore_buffers(self) -> None:
        with torch.no_grad():
            for module, kept in self._buffers:
                for name, one in module.named_buffers():
                    one.copy_(kept[name])

    def _states(self) -> "_States":
        return _States(
            torch.get_rng_state(),
            None if self._device is None else torch.cuda.get_rng_state(self._device),
            tuple(
                one.get_state() if isinstance(one, torch.Generator) else one.bit_generator.state
                for one in self._sources
            ),
        )

    def _rewind(self, states: "_States") -> None:
        torch.set_rng_state(states.cpu)
        if self._device is not None and states.cuda is not None:
            torch.cuda.set_rng_state(states.cuda, self._device)
        for one, state in zip(self._sources, states.sources, strict=True):
            if isinstance(one, torch.Generator):
                one.set_state(state)
            else:
                one.bit_generator.state = state


class _States(NamedTuple):
    """Where every source of randomness stands."""

    cpu: Tensor
    cuda: Tensor | None
    sources: tuple[Any, ...]


def _weights(module: nn.Module, besides: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What is trained in `module`, without the tensors in `besides`."""
    left_out = {id(one) for one in besides}
    return tuple(one for one in module.parameters() if one.requires_grad and id(one) not in left_out)


def _norm(tensors: Sequence[Tensor]) -> float:
    """L2 norm of all of `tensors` together."""
    return math.sqrt(sum(one.double().square().sum().item() for one in tensors))
