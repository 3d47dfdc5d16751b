"""Diffusion: a generator that learns to make an image of any labels, in the texture of any reference image.

Noise is added to real images in many small steps (Ho et al. 2020, arXiv 2006.11239). A
:class:`~wardround.models.denoiser.Denoiser` learns to take it out again, told what is drawn in the image and the
texture of another one. Images are then made of noise alone, in a few large steps (Song et al. 2021, arXiv 2010.02502).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from wardround.client.synthesis.optimiser_state import load_optimiser, names_array, names_of, optimiser_arrays
from wardround.client.synthesis.pairs import Pair, stacked
from wardround.client.synthesis.references import References
from wardround.errors import PlanError, UsageError
from wardround.models.denoiser import Denoiser, DenoiserSettings
from wardround.models.texture import StyleEncoder
from wardround.models.weights import Arrays, load_weights, weights_of

# Images that are made at once.
AT_ONCE = 64

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffusionSettings:
    """How a generator learns and makes images.

    Parameters
    ----------
    timesteps
        Steps from an image to noise in training; a multiple of `sampling_steps`.
    sampling_steps
        Steps from noise to an image.
    prediction
        What the denoiser is asked for. With ``epsilon`` (the noise) nothing can be said of the last step, which is
        noise alone, and the schedule then keeps a trace of the image there. The others train with no such trace, as
        sampling begins (Lin et al. 2024, arXiv 2305.08891).
    schedule
        diffusers' name of the noise schedule.
    mask_drop, style_drop
        Share of training images whose labels or reference are withheld, so that guidance knows what either adds.
    guidance_mask, guidance_style
        How much of what labels and reference add is taken (Ho and Salimans 2022, arXiv 2207.12598); 1 is as learnt.
        Other values take two or three passes a step in place of one.
    ema
        Decay of the moving average of the weights, which is what makes images; less in the first updates.
    learning_rate
        Of AdamW.
    warmup
        Updates over which it rises.
    batch
        Pairs an update.

    Raises
    ------
    UsageError
        If the steps do not divide, or guidance is wanted by something that is never withheld.
    """

    timesteps: int = 1000
    sampling_steps: int = 20
    prediction: Literal["v_prediction", "sample", "epsilon"] = "v_prediction"
    schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    mask_drop: float = 0.2
    style_drop: float = 0.15
    guidance_mask: float = 1.5
    guidance_style: float = 1.0
    ema: float = 0.995
    learning_rate: float = 3e-3
    warmup: int = 50
    batch: int = 16

    def __post_init__(self) -> None:
        if self.sampling_steps < 1 or self.timesteps % self.sampling_steps:
            raise UsageError(
                f"{self.timesteps} steps of noise cannot be undone in {self.sampling_steps} equal steps",
                "the one is no multiple of the other",
                "choose sampling steps that divide the others",
            )
        for name, guidance, drop in (
            ("labels", self.guidance_mask, self.mask_drop),
            ("a reference", self.guidance_style, self.style_drop),
        ):
            if guidance != 1 and drop <= 0:
                raise UsageError(
                    f"a generator cannot be guided by {name} that are never withheld",
                    "it does not learn what an image is without",
                    "raise the share that is dropped, or set guidance to 1",
                )

    @property
    def noising(self) -> dict[str, Any]:
        """What schedulers of training and of sampling have in common."""
        return {
            "num_train_timesteps": self.timesteps,
            "beta_schedule": self.schedule,
            "prediction_type": self.prediction,
            "rescale_betas_zero_snr": self.prediction != "epsilon",
        }


class ImageGenerator:
    """Learns from pairs of image and labels, and makes images of labels.

    Given the same settings, pairs and generators it ends bit-equal on the same CPU, also by way of :meth:`arrays`.
    On CUDA networks run in bfloat16.

    Parameters
    ----------
    settings
        How it learns.
    shape
        Of the networks.
    seed
        Of the first weights; the global random state of torch is left as it was.
    device
        Where to compute.
    """

    def __init__(self, settings: DiffusionSettings, shape: DenoiserSettings, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.shape = shape
        self.device = device
        self._parts = _Parts(shape, seed).to(device)
        self._average = deepcopy(self._parts).eval().requires_grad_(False)
        self._ema = EMAModel(self._parts.parameters(), decay=settings.ema, foreach=True)
        self._optimiser = torch.optim.AdamW(self._parts.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        self._noising = DDPMScheduler(**settings.noising)
        self._seen: frozenset[str] = frozenset()
        self._extent = 0.0

    @property
    def seen(self) -> frozenset[str]:
        """Every case that it has learnt from."""
        return self._seen

    @property
    def updates(self) -> int:
        """How many updates it has had."""
        return int(self._ema.optimization_step)

    def learn(
        self,
        pairs: Sequence[Pair],
        updates: int,
        rng: np.random.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> float:
        """Take `updates` gradient steps, each on pairs that are drawn at random.

        Parameters
        ----------
        pairs
            On one grid, whose sides are multiples of the denoiser's stride. Where there are none, nothing is learnt.
        updates
            Number of steps.
        rng
            Source of all randomness.
        between
            Called after each step; others may use the device before it returns.

        Returns
        -------
        float
            Mean loss over the steps; NaN for none.
        """
        if not pairs or updates < 1:
            return float("nan")
        images, labels = stacked(pairs)
        references = References(pairs, images)
        self._seen |= {pair.case_id for pair in pairs}
        self._extent = max(self._extent, float(images.abs().max()))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        total = 0.0
        for _ in range(updates):
            chosen = rng.integers(len(pairs), size=self.settings.batch)
            reference, known = references.draw(chosen.tolist(), rng)
            known &= torch.from_numpy(rng.random(len(chosen)) >= self.settings.style_drop)
            total += self._step(images[chosen], labels[chosen], (reference, known), rng, noise)
            between()
        return total / updates

    def style_of(self, images: npt.NDArray[np.float32]) -> Tensor | None:
        """The textures ``[N, style]`` of normalised images ``[N, *spatial]``; None for a generator without them."""
        with torch.inference_mode(), self._precision():
            batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
            style = self._averaged().style(batch.to(self.device))
            return None if style is None else style.float()

    def sample(
        self,
        labels: npt.NDArray[np.uint8],
        styles: Tensor | None,
        rng: np.random.Generator,
        *,
        one_noise: bool = False,
        between: Callable[[], None] = lambda: None,
    ) -> npt.NDArray[np.float32]:
        """Make an image of each labels, from noise alone.

        Parameters
        ----------
        labels
            ``[N, *spatial]`` on the grid that was learnt from, or another whose sides the denoiser takes.
        styles
            ``[N, style]``, of :meth:`style_of`; None for no reference.
        rng
            Source of the noise.
        one_noise
            All images begin with the same noise: neighbouring slices of one volume then fit together.
        between
            Called after each step of a batch; others may use the device before it returns.

        Returns
        -------
        numpy.ndarray
            ``[N, *spatial]``, float32, in the intensities of normalised images.

        Raises
        ------
        UsageError
            If it has learnt nothing yet.
        """
        if not self.updates:
            raise UsageError("this generator cannot make an image", "it has learnt nothing yet", "let it learn first")
        source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sides = labels.shape[1:]
        noise = torch.randn((1 if one_noise else len(labels), 1, *sides), generator=source)
        noise = noise.expand(len(labels), -1, *sides)
        masks = torch.from_numpy(labels.astype(np.int64))
        made = [
            self._denoised(noise[first : first + AT_ONCE], masks[first : first + AT_ONCE], part, between)
            for first in range(0, len(labels), AT_ONCE)
            for part in [None if styles is None else styles[first : first + AT_ONCE].to(self.device)]
        ]
        return np.concatenate([np.zeros((0, *sides), dtype=np.float32), *made])

    def arrays(self) -> Arrays:
        """All that it has learnt, to go on from bit for bit by :meth:`load`; it holds the names of the cases it saw."""
        return {
            **{f"weights/{name}": array for name, array in weights_of(self._parts).items()},
            **{f"average/{name}": array for name, array in weights_of(self._averaged()).items()},
            **{f"optimiser/{name}": array for name, array in optimiser_arrays(self._optimiser).items()},
            "updates": np.array([self.updates], dtype=np.int64),
            "extent": np.array([self._extent], dtype=np.float64),
            "seen": names_array(self._seen),
        }

    def load(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Go on from what :meth:`arrays` returned.

        Raises
        ------
        PlanError
            If they are of a generator of another shape; nothing is then changed.
        """

        def those(prefix: str) -> Arrays:
            return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}

        if not {"updates", "extent", "seen"} <= set(arrays):
            raise PlanError("this is no generator's state", "parts of it are missing", "let the generator learn anew")
        load_weights(self._average, those("average/"))
        load_weights(self._parts, those("weights/"))
        load_optimiser(self._optimiser, those("optimiser/"))
        self._ema.shadow_params = [parameter.detach().clone() for parameter in self._average.parameters()]
        self._ema.optimization_step = int(arrays["updates"][0])
        self._extent = float(arrays["extent"][0])
        self._seen = names_of(arrays["seen"])

    def _step(
        self,
        images: Tensor,
        labels: Tensor,
        references: tuple[Tensor, Tensor],
        rng: np.random.Generator,
        source: torch.Generator,
    ) -> float:
        """One gradient step; returns the loss before it."""
        settings, count = self.settings, len(images)
        # Spread evenly over the steps of noise: the loss differs a hundredfold between them.
        spread = (rng.random() + np.arange(count) / count) % 1
        timesteps = torch.from_numpy((spread * settings.timesteps).astype(np.int64)).to(self.device)
        given = torch.from_numpy(rng.random(count) >= settings.mask_drop).to(self.device)
        noise = torch.randn(images.shape, generator=source).to(self.device)
        images = images.to(self.device)
        mask = self._one_hot(labels) * given.reshape(-1, *(1 for _ in images.shape[1:]))
        noisy = self._noising.add_noise(images, noise, timesteps)
        self._parts.train()
        self._optimiser.zero_grad(set_to_none=True)
        with self._precision():
            style = self._parts.style(*(part.to(self.device) for part in references))
            found = self._parts.denoiser(noisy, timesteps, mask, style)
        # Every step of noise counts the same. Counting those of little noise less (Hang et al. 2023, arXiv 2303.09556)
        # was no more faithful after 200 updates, with 1.6 times as much power in the highest frequencies.
        loss = functional.mse_loss(found.float(), self._wanted(images, noise, timesteps))
        loss.backward()  # type: ignore[no-untyped-call]
        if not torch.nn.utils.clip_grad_norm_(self._parts.parameters(), 1.0).isfinite():
            # What is not finite would stay in weights and moments for good.
            _LOG.warning("a step of a generator was left out: a gradient is not finite")
            return loss.item()
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (self.updates + 1) / settings.warmup)
        self._optimiser.step()
        self._ema.step(self._parts.parameters())
        return loss.item()

    def _wanted(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.settings.prediction == "sample":
            return images
        if self.settings.prediction == "epsilon":
            return noise
        velocity: Tensor = self._noising.get_velocity(images, noise, timesteps)
        return velocity

    def _denoised(
        self, noise: Tensor, labels: Tensor, styles: Tensor | None, between: Callable[[], None]
    ) -> npt.NDArray[np.float32]:
        scheduler = DDIMScheduler(
            **self.settings.noising, clip_sample=True, clip_sample_range=self._extent, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(self.settings.sampling_steps)
        denoiser, image = self._averaged().denoiser, noise.to(self.device)
        mask = self._one_hot(labels)
        passes = self._passes(mask, styles)
        for timestep in scheduler.timesteps.tolist():
            with torch.inference_mode(), self._precision():
                steps = torch.full((len(image),), timestep, device=self.device)
                found = [share * denoiser(image, steps, mask, style).float() for share, mask, style in passes]
            image = scheduler.step(sum(found), timestep, image).prev_sample
            between()
        return np.asarray(image[:, 0].cpu().numpy(), dtype=np.float32)

    def _passes(self, mask: Tensor, styles: Tensor | None) -> list[tuple[float, Tensor, Tensor | None]]:
        """What the denoiser is told in each pass of a step, and the share of its answer.

        With e for its answer, ∅ for nothing told, m for labels and s for a reference, the sum is
        ``e(∅,∅) + g_s (e(∅,s) − e(∅,∅)) + g_m (e(m,s) − e(∅,s))``: first the texture, then the anatomy in it.
        """
        nothing = torch.zeros_like(mask)
        by_mask = self.settings.guidance_mask
        by_style = 1.0 if styles is None else self.settings.guidance_style
        told = [(by_mask, mask, styles), (by_style - by_mask, nothing, styles), (1 - by_style, nothing, None)]
        return [one for one in told if one[0] != 0]

    def _averaged(self) -> "_Parts":
        """The networks with the moving average of their weights."""
        self._ema.copy_to(self._average.parameters())
        for own, followed in zip(self._average.buffers(), self._parts.buffers(), strict=True):
            own.copy_(followed)
        return self._average

    def _one_hot(self, labels: Tensor) -> Tensor:
        return functional.one_hot(labels.to(self.device), self.shape.labels).movedim(-1, 1).float()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


class _Parts(nn.Module):
    """The networks of a generator."""

    def __init__(self, shape: DenoiserSettings, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser = Denoiser(shape)
            self.texture = StyleEncoder(shape) if shape.style else None

    def style(self, reference: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Styles of references, the denoiser's own where they are not `known`; None where it takes none."""
        if self.texture is None:
            return None
        style: Tensor = self.texture(reference)
        if known is None:
            return style
        assert self.denoiser.null_style is not None
        return torch.where(known[:, None], style, self.denoiser.null_style.to(style.dtype))
