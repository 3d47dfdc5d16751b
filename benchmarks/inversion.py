"""An image out of one update: gradient inversion, and what secure aggregation and noise leave of it.

One site takes one step on one slice of a drawn case, the worst that a round can be. Whoever sees its change divides by
the learning rate and has the gradient; an image is then sought whose gradient is the same ("Deep leakage from
gradients", Zhu et al. 2019, with known labels as in Zhao et al. 2020 and the cosine of Geiping et al. 2020). What is
known of the label helps the attacker here: it is given. Four coordinators:

* *in the clear* sees the update;
* *one masked update* sees what the site sends under secure aggregation, read as numbers;
* *the sum* sees the mean of eight sites, which it is meant to see;
* *noise* sees an update of one case whose gradient was clipped and noised, as differential privacy does it.

The correlation of the image that is found with the true one, over the slice, is told, and that of the best other case
beside it: what looks like the anatomy of anybody is no leak::

    OMP_NUM_THREADS=1 python benchmarks/inversion.py --seeds 0,1,2
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wardround.client.cases.phantoms import draw_phantom
from wardround.strategies.contract import Weights
from wardround.strategies.secure import messages, tally
from wardround.strategies.secure.fixed_point import Scale, encode, given_digest
from wardround.strategies.secure.identity import new_identity
from wardround.strategies.secure.masks import unpack
from wardround.strategies.secure.party import Party, Rules

ARMS = ("in the clear", "one masked update", "the sum", "noise")
RATE, CLIP, NOISE, SITES = 0.1, 1.0, 1.0, 8
SCALE = Scale(20, 8.0, 64)


def network(seed: int) -> nn.Sequential:
    """Two smooth convolutions without pooling: kind to the attacker."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Conv2d(12, 3, 1)
    )
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return net


def case(seed: Sequence[int], side: int) -> tuple[Tensor, Tensor]:
    """A slice and its labels, (1, 1, side, side) and (1, side, side)."""
    image, label = draw_phantom(np.random.default_rng(list(seed)), shape=(16, 24, 16))
    array = np.asarray(image.array, np.float32)[8]
    array = (array - array.mean()) / (array.std() + 1e-6)
    top, left = (24 - side) // 2, (16 - side) // 2
    labels = np.asarray(label.array, np.int64)[8].clip(0, 2)
    cut = (slice(top, top + side), slice(left, left + side))
    return torch.from_numpy(array[cut].copy())[None, None], torch.from_numpy(labels[cut].copy())[None]


def gradient(net: nn.Module, image: Tensor, labels: Tensor, *, graph: bool = False) -> list[Tensor]:
    """Of the loss, for every array of the network."""
    loss = nn.functional.cross_entropy(net(image), labels)
    return list(torch.autograd.grad(loss, list(net.parameters()), create_graph=graph))


def seen(net: nn.Module, own: list[Tensor], others: Sequence[list[Tensor]], seed: int) -> Mapping[str, list[Tensor]]:
    """What each of the coordinators takes for the gradient of the first site."""
    norm = torch.sqrt(sum(part.square().sum() for part in own))
    generator = torch.Generator().manual_seed(seed)
    noisy = [
        part * min(1.0, CLIP / float(norm)) + CLIP * NOISE * torch.randn(part.shape, generator=generator)
        for part in own
    ]
    mean = [torch.stack(parts).mean(0) for parts in zip(own, *others, strict=True)]
    return dict(zip(ARMS, (own, masked(net, own), mean, noisy), strict=True))


def masked(net: nn.Module, own: list[Tensor]) -> list[Tensor]:
    """A site's masked update, read as if it were none: three sites run the protocol up to there."""
    given: Weights = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    names = list(given)
    learnt = {name: given[name] - RATE * part.numpy() for name, part in zip(names, own, strict=True)}
    words = encode(learnt, given, {"num-examples": 1}, SCALE)
    context = messages.context_of("one round", given_digest(given))
    parties = {site: Party(site, new_identity(), context, Rules(2 / 3, 2)) for site in ("a", "b", "c")}
    roster = messages.write_roster(tally.read_offer(party.offer, site, context) for site, party in parties.items())
    shares = {site: tally.read_shares(party.share(roster), site, parties) for site, party in parties.items()}
    width = SCALE.width(3)
    data = parties["a"].mask(tally.dealt(shares, "a"), lambda sites: (words, width))
    unused = 64 - 8 * width
    numbers = ((unpack(data, width) << np.uint64(unused)).view(np.int64) >> unused) / 2.0**SCALE.bits
    parts, start = [], 0
    for name in names:
        size = given[name].size
        change = numbers[start : start + size].reshape(given[name].shape)
        parts.append(torch.from_numpy(np.float32(-change / RATE)))
        start += size
    return parts


def invert(net: nn.Module, wanted: list[Tensor], labels: Tensor, steps: int, seed: int) -> Tensor:
    """An image whose gradient points where `wanted` does."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((1, 1, *labels.shape[1:]), generator=generator).requires_grad_()
    optimiser = torch.optim.LBFGS([image], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")
    target = torch.cat([part.ravel() for part in wanted])
    target = target / target.norm()

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = torch.cat([part.ravel() for part in gradient(net, image, labels, graph=True)])
        distance = 100 * (1 - found @ target / (found.norm() + 1e-12))
        distance.backward()
        return distance

    optimiser.step(closure)
    return image.detach()


def likeness(found: Tensor, true: Tensor) -> float:
    """Correlation of two images, −1 … 1."""
    pair = torch.stack([found.ravel(), true.ravel()])
    return float(torch.corrcoef(pair)[0, 1]) if bool(torch.isfinite(found).all()) else 0.0


def attack(seed: int, side: int, steps: int) -> dict[str, tuple[float, float]]:
    """For each coordinator, how like the image that it finds is to the true one, and to the best other one."""
    net = network(seed)
    image, labels = case([seed, 0], side)
    others = [case([seed, 1 + number], side) for number in range(SITES - 1)]
    views = seen(net, gradient(net, image, labels), [gradient(net, *other) for other in others], seed)
    scores = {}
    for arm, wanted in views.items():
        found = invert(net, wanted, labels, steps, seed)
        scores[arm] = (likeness(found, image), max(likeness(found, other) for other, _ in others))
    return scores


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--side", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    scores = [attack(seed, options.side, options.steps) for seed in seeds]
    print(
        "| what the coordinator sees | correlation with the true image | with the best other one |\n| --- | --- | --- |"
    )
    for arm in ARMS:
        own, other = zip(*(score[arm] for score in scores), strict=True)
        spread = f" ± {statistics.stdev(own):.2f}" if len(seeds) > 1 else ""
        print(f"| {arm} | {statistics.mean(own):.2f}{spread} | {statistics.mean(other):.2f} |")
    print(f"\n{options.side} × {options.side} pixels, {options.steps} steps of L-BFGS, seeds {seeds}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
