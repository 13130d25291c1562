"""How the tasks of a bank compare when the second moments of natural images are carried through their layers.

The cosine of atoms compares what a layer does to white input that is the same for all tasks. Real input is neither: its
neighbouring pixels are alike, and what enters a layer depends on the task's layers before it, on their normalisation
and on the rectifiers between. All this can be followed in closed form, without an image.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.atoms.layers import atom_layers
from fscl.compare.moment_steps import Way
from fscl.compare.trace import trace
from fscl.errors import FsclError

__all__ = ["moment_similarity"]

Call = Callable[[nn.Module, Tensor], object]
FARTHEST = 16  # lags of the images, in pixels each way
BLOCK = 2**22  # values of a block's lag maps


def moment_similarity(
    bank: AtomBank,
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    exponent: float = 1.0,
    colour: float = 0.9,
    terms: int = 1,
    normalisation: bool = True,
    per_layer: bool = False,
    call: Call | None = None,
) -> Tensor:
    """Task-to-task similarity of what layers give for images with the spectrum of natural ones, in closed form.

    For each pair of tasks and each layer, the correlation of the two networks' features as a function of the distance
    between positions, averaged over channels. A convolution maps it linearly: by the correlation of the two tasks'
    atoms, weighted by the Gram matrices of the shared coefficients. Normalisation and the rectifier after it map it by
    the Hermite coefficients of ``relu(scale * x + shift)`` for normal x, which are those of the two tasks' channels.
    Pooling and strides keep every so many position. What is compared is the squared correlation at distance zero.

    Where shortcuts are added or joined, so are covariances. Exact for one layer of linear filters on stationary input;
    beyond, features are taken to be normal, and channels and what is added to be independent of each other.

    Args:
        bank: T tasks.
        model: their network, with rectifiers; it is run once, on a blank image, to see what it does between its layers.
            Convolutions without atoms are taken from it.
        shape: of an input image: (channels, height, width).
        exponent: of the images' amplitude over the spatial frequency, as in :func:`fscl.similarity.noise_images`.
        colour: correlation of the images' channels with each other; natural ones are nearly grey.
        terms: of the Hermite series. 1 takes the rectifier for a gain. More are right for independent channels; in
            deep networks, whose channels are not, they add up to too little similarity.
        normalisation: False leaves scale and shift of the normalisation out, as if all were 1 and 0.
        per_layer: return (L, T, T), before the mean over layers.
        call: makes the pass from (model, images) where ``model(images)`` does not.

    Returns:
        (T, T) or (L, T, T) in float64 on the CPU, in [0, 1], 1 on the diagonal.

    Raises:
        FsclError: the bank is empty or not of this network; a layer that the pass does not reach; bad arguments.

    References:
        Field. Relations between the statistics of natural images and the response properties of cortical cells. JOSA A
        1987. Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli. Exponential expressivity in deep neural networks through
        transient chaos. NeurIPS 2016.

    Example:
        >>> from fscl.atoms import decompose, freeze_coefficients
        >>> model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))).model
        >>> freeze_coefficients(model)
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0)
        >>> with torch.no_grad():
        ...     _ = model[0].atoms.add_(torch.randn(model[0].atoms.shape))
        >>> bank.store(model, task=1)
        >>> moment_similarity(bank, model, (1, 16, 16)).shape
        torch.Size([2, 2])
    """
    if len(shape) != 3 or min(shape) < 1:
        raise FsclError(f"shape is {tuple(shape)}; (channels, height, width) would do")
    if terms < 1 or exponent < 0 or not 0 <= colour <= 1:
        given = f"{terms} terms, exponent {exponent}, colour {colour}"
        raise FsclError(f"{given}; at least 1 term, an exponent of 0 or more and a colour from 0 to 1 would do")
    if not bank.tasks:
        raise FsclError("the bank is empty; store a task first")
    if unknown := [name for name in bank.layers if name not in atom_layers(model)]:
        raise FsclError(f"the network has no atom layer {unknown[0]!r}; the bank is of another one")
    way = Way(bank, model, shape[0], trace(model, shape, call), terms, normalisation, colour)
    if missing := set(bank.layers) - {step.layer for step in way.steps}:
        known = "convolution, normalisation, rectifier, pooling, sum, join of channels"
        raise FsclError(
            f"a pass does not reach layer {sorted(missing)[0]!r} by what can be followed ({known}); give `call` that "
            "makes one that does"
        )
    side = max(shape[1:])
    first = _autocorrelation(side, min(way.reach, FARTHEST, (side - 1) // 2), exponent)
    tasks = torch.arange(len(bank))
    alone = way.carried(first, tasks, tasks, None)
    rows, columns = torch.tril_indices(len(bank), len(bank), -1)
    found = {layer: torch.ones(len(bank), len(bank), dtype=torch.float64) for layer in bank.layers}
    block = max(1, BLOCK // (first.numel() * len(way.steps)))
    for u, v in zip(rows.split(block), columns.split(block), strict=True):
        for place, between in way.carried(first, u, v, alone).items():
            if (layer := way.steps[place].layer) in found:
                found[layer][u, v] = found[layer][v, u] = between.square().clamp(max=1)
    matrices = torch.stack(list(found.values()))
    return matrices if per_layer else matrices.mean(0)


def _autocorrelation(side: int, far: int, exponent: float) -> Tensor:
    """Of :func:`fscl.similarity.noise_images` of an exponent: (2 far + 1, 2 far + 1), 1 in the middle."""
    waves = torch.fft.fftfreq(side, dtype=torch.float64)
    frequency = torch.hypot(waves[:, None], waves[None])
    frequency[0, 0] = 1 / side  # as in `noise_images`
    power = frequency ** (-2 * exponent)
    lags = torch.arange(-far, far + 1) % side
    found = torch.fft.ifft2(power).real[lags][:, lags]
    return found / found[far, far]
