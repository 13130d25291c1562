"""Images made without data have the statistics of natural images, or those that a network stored in training."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.errors import FsclError
from fscl.similarity import dead_leaves, noise_images, recall_images

MAKERS = pytest.mark.parametrize("make", [noise_images, dead_leaves])


@pytest.fixture(scope="module")
def leaves() -> Tensor:
    return dead_leaves(24, (3, 32, 32))


def spectrum(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Every wave's frequency in cycles per pixel, (height, width), and mean amplitude over images and channels."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in images.shape[2:]), indexing="ij"))
    power = np.abs(np.fft.fft2(images.double().numpy())) ** 2
    return frequency, np.sqrt(power.mean((0, 1)))


def kurtosis(values: Tensor) -> float:
    """The kurtosis; 3 for a normal distribution."""
    centred = (values - values.mean()).double()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


# Noise and leaves


@MAKERS
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 9, 14), (2, 1, 8)])
def test_noise_and_leaves_are_float32_with_mean_0_and_variance_1(make, shape):
    images = make(5, shape)
    assert images.dtype == torch.float32
    assert images.shape == (5, *shape)
    assert images.double().mean() == pytest.approx(0, abs=1e-6)
    assert images.double().var(correction=0) == pytest.approx(1, abs=1e-5)


@MAKERS
def test_noise_and_leaves_are_repeated_by_their_seed_only(make):
    luck = torch.get_rng_state()
    first, again, other = make(3, (2, 8, 8), seed=4), make(3, (2, 8, 8), seed=4), make(3, (2, 8, 8), seed=5)
    assert torch.equal(first, again)
    assert abs(float((first * other).mean())) < 0.3  # of two images each of variance 1
    assert abs(float((first[0] * first[1]).mean())) < 0.6
    assert torch.equal(torch.get_rng_state(), luck)


@MAKERS
@pytest.mark.parametrize(
    ("n", "shape", "message"),
    [
        (0, (1, 8, 8), r"0 images of shape \(1, 8, 8\); \(channels, height, width\) and n of 1 or more would do"),
        (2, (0, 8, 8), r"2 images of shape \(0, 8, 8\)"),
        (2, (1, 8, -1), r"2 images of shape \(1, 8, -1\)"),
        (2, (8, 8), r"2 images of shape \(8, 8\)"),
    ],
)
def test_noise_and_leaves_refuse_sizes_below_1(make, n, shape, message):
    with pytest.raises(FsclError, match=message):
        make(n, shape)


# Noise


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_noise_amplitude_falls_as_a_power_of_frequency_in_all_directions(exponent):
    frequency, amplitude = spectrum(noise_images(64, (2, 20, 32), exponent))
    waves = frequency > 0
    slope, offset = np.polyfit(np.log(frequency[waves]), np.log(amplitude[waves]), 1)
    assert slope == pytest.approx(-exponent, abs=0.02)
    left = np.log(amplitude[waves]) - slope * np.log(frequency[waves]) - offset
    assert np.abs(left).max() < 0.25  # each is a mean of 128 values, with a deviation of 0.044 in the logarithm
    slowest = amplitude[0, 1]
    assert amplitude[0, 0] == pytest.approx(slowest, rel=0.3)  # the mean brightness


def test_noise_has_amplitude_1_over_f_by_default():
    assert torch.equal(noise_images(2, (1, 8, 8)), noise_images(2, (1, 8, 8), exponent=1.0))


def test_noise_is_normal_and_its_channels_are_independent():
    images = noise_images(64, (3, 16, 16), exponent=0)
    assert kurtosis(images) == pytest.approx(3, abs=0.1)
    flat = images.transpose(0, 1).flatten(1)
    assert torch.allclose(torch.corrcoef(flat), torch.eye(3), atol=0.03)  # of 16,384 values each


# Dead leaves


def test_dead_leaves_are_flat_with_edges_shared_by_all_channels(leaves):
    same = leaves.diff(dim=3) == 0
    assert 0.5 < same.float().mean() < 0.75
    assert torch.equal(same[:, 0], same[:, 1])
    assert torch.equal(same[:, 0], same[:, 2])
    flat = leaves.transpose(0, 1).flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.1  # colours are independent
    assert kurtosis(leaves.diff(dim=3)) > 6
    assert kurtosis(noise_images(24, (3, 32, 32)).diff(dim=3)) == pytest.approx(3, abs=0.2)


def test_dead_leaves_cover_each_image_and_differ_between_images(leaves):
    colours = [set(image[0].flatten().tolist()) for image in leaves]
    assert len(set().union(*colours)) == sum(map(len, colours))


def test_dead_leaves_have_the_same_statistics_everywhere_and_in_all_directions():
    images = dead_leaves(64, (1, 16, 16))
    down, right = (images.diff(dim=d) for d in (2, 3))
    assert down.square().mean() / right.square().mean() == pytest.approx(1, abs=0.1)
    flat = (right == 0).float().mean()
    for lines in ((right == 0).float().mean((0, 1, 3)), (down == 0).float().mean((0, 1, 2))):
        assert lines.shape == (16,)
        assert (lines - flat).abs().max() < 0.06  # rows and columns, those at the edges too


def test_dead_leaves_have_a_natural_spectrum_and_are_scale_invariant(leaves):
    """Sizes with density r^-2 or r^-4, equal sizes, and uniform sizes fail at least one check by 0.1 or more."""
    frequency, amplitude = spectrum(leaves)
    waves = (frequency > 0) & (frequency < 0.25)  # beyond it are the smallest leaves, of a pixel
    assert np.polyfit(np.log(frequency[waves]), np.log(amplitude[waves]), 1)[0] == pytest.approx(-0.85, abs=0.1)

    def contrast(images: Tensor) -> float:
        return float(sum(images.diff(dim=d).square().mean() for d in (2, 3)))

    for _ in range(2):  # half the size and again: little contrast is lost, where white noise loses three quarters
        smaller = F.avg_pool2d(leaves, 2)
        assert contrast(smaller) / contrast(leaves) == pytest.approx(0.77, abs=0.08)
        leaves = smaller


# Recall


class Net(nn.Module):
    """Two layers with optional normalisation, and modules that should not matter for a recall."""

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.norm, self.affineless = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(8, momentum=None, affine=False)
        self.batchwise = nn.BatchNorm2d(8, track_running_stats=False)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self(data)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.drop(self.batchwise(self.affineless(self.body(x)))).mean((2, 3)))


@pytest.fixture
def networks() -> list[Net]:
    """Two networks with statistics of different data."""
    bright = 2 + noise_images(32, (2, 8, 8), exponent=2)
    dark = torch.stack([torch.linspace(-3, 0, 8).expand(8, 8)] * 2) + 0.5 * torch.randn(32, 2, 8, 8)
    return [Net(bright), Net(dark)]


@torch.no_grad()
def mismatch(net: Net, images: Tensor) -> float:
    """Distance of each normalisation's input from its statistics: means in standard deviations, and log deviations."""
    found = []

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        remembered = layer.running_var.sqrt()
        found.append(((values.mean(1) - layer.running_mean) / remembered).square().mean())
        found.append((values.std(1) / remembered).log().square().mean())

    net = copy.deepcopy(net).eval()
    net.norm.register_forward_pre_hook(look)
    net.affineless.register_forward_pre_hook(look)
    net(images)
    assert len(found) == 4
    return float(sum(found))


def test_recalled_images_match_the_statistics_of_their_network_only(networks):
    start = noise_images(16, (2, 8, 8))
    recalled = [recall_images(net, start, steps=60) for net in networks]
    for i, net in enumerate(networks):
        assert mismatch(net, recalled[i]) < 0.1 * mismatch(net, start)
        assert mismatch(net, recalled[i]) < 0.1 * mismatch(net, recalled[1 - i])


def test_images_recalled_from_several_networks_are_nearer_to_all_of_them(networks):
    start = noise_images(16, (2, 8, 8))
    both = recall_images(networks, start, steps=80)
    before, after = ([mismatch(net, images) for net in networks] for images in (start, both))
    assert sum(after) < 0.5 * sum(before)
    alone = recall_images(networks[0], start, steps=40)
    assert mismatch(networks[1], both) < 0.5 * mismatch(networks[1], alone)
    assert torch.equal(recall_images(iter(networks[:1]), start, steps=3), recall_images(networks[0], start, steps=3))


def test_recalled_mean_and_variance_equal_those_of_the_training_data():
    net = nn.Sequential(nn.BatchNorm2d(2))
    net[0].running_mean.copy_(torch.tensor([3.0, -1.0]))
    net[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    images = recall_images(net, noise_images(16, (2, 6, 6), exponent=2), steps=300)
    values = images.transpose(0, 1).flatten(1)
    assert torch.allclose(values.mean(1), torch.tensor([3.0, -1.0]), atol=0.05)
    assert torch.allclose(values.std(1), torch.tensor([2.0, 0.5]), atol=0.05)
    brightness = images.mean((2, 3)).std(0)
    assert (brightness > torch.tensor([0.5, 0.1])).all()  # of all images together: each alone may be bright or dark


def test_recall_steps_use_the_networks_in_turn(networks):
    passes = [0, 0]
    for i, net in enumerate(networks):
        net.head.register_forward_hook(lambda *_, i=i: passes.__setitem__(i, passes[i] + 1))
    recall_images(networks, noise_images(16, (2, 8, 8)), steps=5)
    assert passes == [3, 2]


def test_more_and_larger_recall_steps_change_images_more(networks):
    start = noise_images(16, (2, 8, 8))
    first = recall_images(networks[0], start, steps=1, rate=0.2)
    assert float((first - start).abs().max()) == pytest.approx(0.2, rel=1e-3)  # Adam's first step is the rate
    found = [mismatch(networks[0], recall_images(networks[0], start, steps=steps)) for steps in (5, 20, 80)]
    assert found == sorted(found, reverse=True)


def test_recall_is_deterministic_and_does_not_change_its_start_images(networks):
    start = noise_images(16, (2, 8, 8))
    before, luck = start.clone(), torch.get_rng_state()
    with torch.no_grad():  # of the caller's, such as an evaluation
        found = recall_images(networks[0].train(), start, steps=3)
    assert torch.equal(found, recall_images(networks[0].eval(), start, steps=3))  # dropout is off
    assert torch.equal(start, before)
    assert torch.equal(torch.get_rng_state(), luck)
    assert found.shape == start.shape
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(recall_images(networks[0], start.double(), steps=3), found)


def test_recall_does_not_change_networks_even_if_a_pass_fails(networks):
    net = networks[0].train()
    net.norm.eval()  # frozen statistics, as in fine-tuning
    net.stem.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    state = {name: values.clone() for name, values in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    parameters = list(net.parameters())
    net.drop.register_forward_hook(lambda *_: None)
    recall_images(net, noise_images(16, (2, 8, 8)), steps=3)
    with pytest.raises(RuntimeError, match="expected input"):
        recall_images(net, noise_images(16, (3, 8, 8)), steps=3)
    assert all(torch.equal(values, state[name]) for name, values in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == wanted
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert all(p.grad is None for p in net.parameters() if p is not net.head.weight)
    assert [len(module._forward_hooks) for module in net.modules()] == [int(m is net.drop) for m in net.modules()]


def test_recall_makes_passes_with_the_given_call(networks):
    class Labelled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images, label):
            assert label == 3
            return self.network(images)

    start = noise_images(16, (2, 8, 8))
    found = recall_images([Labelled(net) for net in networks], start, 5, call=lambda net, images: net(images, 3))
    assert torch.equal(found, recall_images(networks, start, 5))


@pytest.mark.parametrize(
    "bare",
    [
        nn.Sequential(nn.Conv2d(2, 3, 3)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
)
def test_recall_refuses_networks_without_running_statistics(networks, bare):
    start = noise_images(16, (2, 8, 8))
    message = "Sequential has no batch normalisation with running statistics to recall images from; use dead_leaves or"
    for models in (bare, [networks[0], bare]):
        with pytest.raises(FsclError, match=message):
            recall_images(models, start, steps=1)


def test_recall_refuses_no_networks_and_no_steps(networks):
    start = noise_images(16, (2, 8, 8))
    with pytest.raises(FsclError, match="0 networks and 200 steps; one or more of each would do"):
        recall_images([], start)
    with pytest.raises(FsclError, match="2 networks and 0 steps"):
        recall_images(networks, start, steps=0)


def test_recall_on_a_gpu_agrees_with_the_cpu(networks):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    start = noise_images(16, (2, 8, 8))
    found = recall_images([net.cuda() for net in networks], start, steps=20)
    assert found.device.type == "cuda"
    assert sum(mismatch(net, found) for net in networks) < 0.9 * sum(mismatch(net, start.cuda()) for net in networks)
