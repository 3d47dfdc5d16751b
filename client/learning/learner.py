"""The online learner: one network, one optimiser, updates from the case at hand and from memory."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wardround.client.learning.asked import asked_terms
from wardround.client.learning.augmentation import Augmenter
from wardround.client.learning.batches import Batch, assemble
from wardround.client.learning.inference import predict
from wardround.client.learning.private_steps import PrivateSteps
from wardround.client.learning.replay import Sample
from wardround.client.learning.schedule import head_steps
from wardround.client.learning.settings import LearningSettings
from wardround.client.learning.stored_logits import StoredLogits
from wardround.client.learning.teachers import Distiller
from wardround.client.learning.terms import Pass, Term, frozen_copy
from wardround.client.supervision.losses import segmentation_loss
from wardround.errors import UsageError
from wardround.models.attention import watched_attention
from wardround.models.catalogue import Features, architecture, build
from wardround.models.weights import load_weights, weights_of
from wardround.strategies.local_keys import matches

__all__ = ["Checkpoint", "LearningSettings", "OnlineLearner", "resolve_device"]

Arrays = dict[str, npt.NDArray[np.generic]]


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device.

    Raises
    ------
    UsageError
        If CUDA is asked for and not there, or the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"there is no device called {name!r}", "", "choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA device was found", "none is fitted, or torch was built without it", "use --device cpu"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything of a learner that an update changes, on the learner's own device. Never written to.

    Parameters
    ----------
    weights
        Parameters and buffers by name.
    optimiser
        Moments and step counts of AdamW, and its settings.
    scaler
        Of mixed precision; empty where that is off.
    terms
        State of each further term of the loss.
    """

    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Any]
    scaler: Mapping[str, Any]
    terms: tuple[Mapping[str, Any], ...] = ()


class OnlineLearner:
    """A network that predicts and learns by turns.

    Raises
    ------
    UsageError
        If attentive similarity is wanted of a network without attention.

    Given the same settings, weights, optimiser state, samples and generator it ends bit-equal on the same CPU. On a GPU
    cuDNN is asked for the same; interpolation there still sums in any order, so that last bits may differ.
    """

    def __init__(self, settings: LearningSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
        self.regularisation = settings.regularisation
        self._spec = architecture(settings.model)
        # Sides of what is learnt from are multiples of it; whoever has another network look at it, too, may raise it.
        self.stride = self._spec.stride
        if settings.regularisation.attentive and self._spec.attention is None:
            raise UsageError(
                f"{settings.model} has no attention",
                "attentive similarity compares it",
                "choose a network with attention",
            )
        network = build(settings.model, settings.labels, settings.seed)
        layout = torch.channels_last_3d if self._spec.dimensions == 3 else torch.channels_last
        self._network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self._optimiser = torch.optim.AdamW(self._network.parameters(), lr=0.0, weight_decay=settings.weight_decay)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._mixed)
        self._anchor: list[Tensor] = []
        self.terms: list[Term] = []
        if settings.distillation.active:
            self.attach(Distiller(settings.distillation, self._network))
        if settings.stored_logits:
            self.attach(StoredLogits(settings.stored_logits))
        for term in asked_terms(settings, self._network):
            self.attach(term)

    @property
    def _mixed(self) -> bool:
        return self.settings.amp and self.device.type == "cuda"

    def attach(self, term: Term) -> None:
        """Add a term to the loss, and train what it holds; checkpoints of before cannot be restored from then on."""
        self.terms.append(term)
        own = list(term.own.parameters())
        if own:
            self._optimiser.add_param_group({"params": own})

    def detach(self, term: Term) -> None:
        """Take back :meth:`attach` of a term that holds no weights."""
        assert not list(term.own.parameters()), "the optimiser would still know them"
        self.terms.remove(term)

    def load(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take over global weights; they are also the anchor of the proximal term, and the federation's teacher."""
        for term in self.terms:
            term.received(weights)
        load_weights(self._network, weights)
        self._anchor = [parameter.detach().clone() for parameter in self._network.parameters()]
        for term in self.terms:
            term.loaded(self._network)

    def weights(self) -> Arrays:
        """A copy of the current weights by name."""
        return weights_of(self._network)

    def leaving(self) -> Arrays:
        """The current weights as they leave after a round, and what travels beside them."""
        arrays = self.weights()
        for term in self.terms:
            arrays = term.leaving(arrays)
        return arrays

    def frozen(self) -> nn.Module:
        """A copy of the network as it is now, in evaluation mode, that learns no more."""
        return frozen_copy(self._network)

    def open_case(self, learnt: bool) -> None:
        """Tell the terms of the loss that a case is opened, and whether the site has learnt from any before it."""
        for term in self.terms:
            term.opened(self._network, learnt)

    def accept_case(self, sample: Sample, rng: np.random.Generator) -> None:
        """Tell the terms of the loss that a case is accepted, which `sample` is learnt of; `rng` is theirs to draw."""
        for term in self.terms:
            term.accepted(self._network, lambda: self._assemble([sample], rng, None), rng)

    def local(self) -> Arrays:
        """What the terms of the loss keep at the site, as named arrays; it is no part of :meth:`weights`."""
        named = {f"{term.name}/{name}": tensor for term in self.terms for name, tensor in term.kept().items()}
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in named.items()}

    def load_local(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Restore what :meth:`local` returned, after :meth:`load`; what no term knows is left."""
        for term in self.terms:
            own = {
                name.removeprefix(f"{term.name}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{term.name}/")
            }
            term.keep({name: torch.from_numpy(np.array(array)).to(self.device) for name, array in own.items()})

    def _trained(self) -> list[str]:
        """Names of everything that the optimiser moves, in its order."""
        own = [f"{term.name}/{name}" for term in self.terms for name, _ in term.own.named_parameters()]
        return [name for name, _ in self._network.named_parameters()] + own

    def optimiser_state(self) -> Arrays:
        """The moments of AdamW as named arrays, empty before the first update."""
        names = self._trained()
        state = self._optimiser.state_dict()["state"]
        return {
            f"{names[index]}/{key}": value.detach().cpu().numpy().copy()
            for index, moments in state.items()
            for key, value in moments.items()
        }

    def load_optimiser_state(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Restore what :meth:`optimiser_state` returned; moments of what terms of other settings held are left."""
        indices = {name: index for index, name in enumerate(self._trained())}
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            parameter, key = name.rsplit("/", 1)
            if "/" in parameter and parameter not in indices:
                continue
            state.setdefault(indices[parameter], {})[key] = torch.from_numpy(np.array(array))
        whole = self._optimiser.state_dict()
        whole["state"] = state
        self._optimiser.load_state_dict(whole)

    def checkpoint(self) -> Checkpoint:
        """A copy of the learner's state, to come back to by :meth:`restore`."""
        weights = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}
        state = deepcopy(self._optimiser.state_dict())
        terms = tuple(term.state() for term in self.terms)
        return Checkpoint(weights, state, deepcopy(self._scaler.state_dict()), terms)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to `checkpoint`: whatever follows is bit-equal to what would have followed then.

        The checkpoint stays as it is and can be restored again. The anchor of the proximal term is not touched.
        """
        self._network.load_state_dict(checkpoint.weights)
        # The optimiser takes the tensors it is given for its own and would change them in place.
        self._optimiser.load_state_dict(deepcopy(dict(checkpoint.optimiser)))
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(deepcopy(dict(checkpoint.scaler)))
        for term, state in zip(self.terms, checkpoint.terms, strict=True):
            term.restore(state)
        self._optimiser.zero_grad(set_to_none=True)

    def losses(self, samples: Sequence[Sample]) -> list[float]:
        """The loss on each sample as a whole volume: no augmentation, no proximal term, nothing learnt."""
        found = []
        for sample in samples:
            # Cross-entropy takes the logarithm of a softmax, which leaves logarithms of probabilities as they are.
            scores = torch.from_numpy(self.predict(sample.image)).clamp_min(torch.finfo(torch.float32).tiny).log()
            target, weight = (torch.from_numpy(part.astype(np.float32)) for part in (sample.target, sample.weight))
            loss = segmentation_loss(scores[None], target[None], weight[None], self.settings.dice)
            found.append(loss.item())
        return found

    def interference(self, incoming: Sample, candidates: Sequence[Sample], rng: np.random.Generator) -> list[float]:
        """How much the loss on each candidate would rise by what `incoming` alone adds to the weights.

        The virtual update of Aljundi et al. 2019 (arXiv 1908.04742, algorithm 1), taken back bit by bit: ``w − η g`` as
        theirs, with each gradient over its root mean square, as AdamW scales it. AdamW's momentum, which comes from
        other samples, and augmentation are left out.

        Parameters
        ----------
        incoming
            What is about to be learnt.
        candidates
            What might suffer.
        rng
            Chooses the window where `incoming` is larger than a training window.

        Returns
        -------
        list of float
            One value a candidate, negative where the step would help.
        """
        before = self.losses(candidates)
        batch = self._assemble([incoming], rng, augmentation=None)
        parameters = list(self._network.parameters())
        saved = [parameter.detach().clone() for parameter in parameters]
        logits = self._network(batch.image).float()
        loss = segmentation_loss(logits, batch.target, batch.weight, self.settings.dice, told=batch.told)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        try:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(self._optimiser.param_groups[0]["lr"] * self._scaled(parameter, gradient))
            after = self.losses(candidates)
        finally:
            with torch.no_grad():
                for parameter, old in zip(parameters, saved, strict=True):
                    parameter.copy_(old)
        return [new - old for new, old in zip(after, before, strict=True)]

    def _scaled(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The gradient over its root mean square as AdamW knows it; over its own size before the first update."""
        group, state = self._optimiser.param_groups[0], self._optimiser.state.get(parameter)
        square = gradient.square()
        if state:
            square = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())
        scaled: Tensor = gradient / (square.sqrt() + group["eps"])
        return scaled

    def predict(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Class probabilities ``[C, I, J, K]`` of a normalised image ``[I, J, K]``."""
        return predict(
            self._network,
            image,
            stride=self._spec.stride,
            device=self.device,
            amp=self.settings.amp,
            dimensions=self._spec.dimensions,
        )

    def update(
        self,
        batch: Callable[[], Sequence[Sample]],
        updates: int,
        learning_rate: float,
        rng: np.random.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> float:
        """Take `updates` gradient steps.

        Parameters
        ----------
        batch
            Called once a step; returns the samples to learn from (at least one).
        updates
            Number of steps.
        learning_rate
            Of AdamW, the same for all these steps.
        rng
            Source of windows and augmentation.
        between
            Called after each step; others may use the device before it returns.

        Returns
        -------
        float
            Mean loss over the steps; NaN for none.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._network.train()
        total = 0.0
        for still in self._turns(updates):
            total += self._step(self._assemble(batch(), rng, self.settings.augmentation), rng, still)
            between()
        return total / updates if updates else float("nan")

    def _turns(self, updates: int) -> Iterator[Collection[nn.Parameter]]:
        """For each of so many steps the parameters that stay as they are; see `head_share` of the settings."""
        if not self.settings.head_share:
            yield from ((),) * updates
            return
        named = list(self._network.named_parameters())
        head = [parameter for name, parameter in named if matches(name, self.settings.local_keys)]
        body = [parameter for name, parameter in named if not matches(name, self.settings.local_keys)]
        first = head_steps(updates, self.settings.head_share)
        yield from (body,) * first + (head,) * (updates - first)

    def update_privately(
        self,
        records: Callable[[Sequence[int]], Sequence[Sequence[Sample]]],
        updates: int,
        learning_rate: float,
        steps: PrivateSteps,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Take `updates` steps that are differentially private for each record (Abadi et al. 2016, algorithm 1).

        Each record's gradient is worked out by itself, over all that the optimiser trains together: in one batch its
        padding would follow from the shapes of others. Opacus's sampler of gradients, which needs windows of one
        shape, gives the same numbers; for the networks of the catalogue it took 1.3 to 1.5 times as long on a CPU, and
        more memory. What is known without any record (the proximal term, corrections by terms) comes after the noise.

        Parameters
        ----------
        records
            Called once a step with the numbers of the sampled records, possibly none; returns the windows of each.
        updates, learning_rate, between
            As in :meth:`update`.
        steps
            Samples, cuts and changes windows, clips, and adds the noise.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._network.train()
        trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        for _ in range(updates):
            sums = steps.nothing(trained)
            numbers, generator = steps.sampled(), steps.generators()
            for number, record in zip(numbers, records(numbers), strict=True):
                rng = generator(number)
                self._optimiser.zero_grad(set_to_none=True)
                for window in record:
                    batch = self._assemble([window], rng, self.settings.augmentation)
                    loss, aside = self._loss(batch, rng, proximal=False)
                    ((loss + aside) / len(record)).backward()  # type: ignore[no-untyped-call]
                steps.add(sums, trained)
            steps.finish(sums, trained)
            if self.settings.proximal_mu:
                for parameter, anchor in zip(self._network.parameters(), self._anchor, strict=True):
                    assert parameter.grad is not None
                    parameter.grad.add_(parameter.detach() - anchor, alpha=self.settings.proximal_mu)
            for term in self.terms:
                term.gradients(self._network, learning_rate)
            self._optimiser.step()
            between()

    def _step(self, batch: Batch, rng: np.random.Generator, still: Collection[nn.Parameter] = ()) -> float:
        """One gradient step of all but what is to stay `still`; returns the loss before it."""
        self._optimiser.zero_grad(set_to_none=True)
        loss, aside = self._loss(batch, rng)
        self._scaler.scale(loss + aside).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        if (still or self.terms) and self._is_taken():
            for parameter in still:
                parameter.grad = None
            for term in self.terms:
                term.gradients(self._network, self._optimiser.param_groups[0]["lr"])
        alone = [list(term.own.parameters()) for term in self.terms if term.apart]
        trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        others = {id(parameter) for parameters in alone for parameter in parameters}
        for parameters in ([each for each in trained if id(each) not in others], *alone):
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return loss.item()

    def _is_taken(self) -> bool:
        """Whether the step is taken: mixed precision leaves it out where any gradient is not finite."""
        if not self._scaler.is_enabled():
            return True
        trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        finite = [parameter.grad.isfinite().all() for parameter in trained if parameter.grad is not None]
        return bool(torch.stack(finite).all())

    def _loss(self, batch: Batch, rng: np.random.Generator, proximal: bool = True) -> tuple[Tensor, Tensor]:
        """The loss on a batch, and what terms say that learn apart from the network."""
        wanted = {stage for term in self.terms for stage in term.stages}
        with ExitStack() as watching:
            watched = watched_attention(self._network if self.regularisation.attentive else None)
            attention = watching.enter_context(watched)
            features = watching.enter_context(Features(self._network, *sorted(wanted))) if wanted else None
            with torch.autocast(self.device.type, enabled=self._mixed):
                logits = self._network(batch.image)
            attended = None if attention is None else attention.seen
        logits = logits.float()
        loss = segmentation_loss(logits, batch.target, batch.weight, self.settings.dice, batch.factors, batch.told)
        if proximal:
            loss = loss + self._proximal()
        if self.regularisation.active:
            loss = loss + self.regularisation(
                logits, batch.image, batch.drawn, batch.spacings, attended, inside=batch.inside, air=batch.air
            )
        aside = loss.new_zeros(())
        if self.terms:
            seen = Pass(self._network, logits, batch, features, self._mixed, rng)
            for term in self.terms:
                if term.apart:
                    aside = aside + term(seen)
                else:
                    loss = loss + term(seen)
        return loss, aside

    def _proximal(self) -> Tensor | float:
        if not self.settings.proximal_mu:
            return 0.0
        pairs = zip(self._network.parameters(), self._anchor, strict=True)
        distance = torch.stack([(parameter - anchor).square().sum() for parameter, anchor in pairs]).sum()
        return 0.5 * self.settings.proximal_mu * distance

    def _assemble(self, samples: Sequence[Sample], rng: np.random.Generator, augmentation: Augmenter | None) -> Batch:
        batch = assemble(samples, self._spec.dimensions, self.stride, self.settings.patch, rng, augmentation)
        return batch.to(self.device)
