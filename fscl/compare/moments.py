"""Compares the tasks of a bank by carrying the second moments of natural images through their layers.

The cosine of atoms compares what a layer does to white input that is the same for all tasks. Real input is different in
two ways: neighbouring pixels are alike, and the input of a layer depends on the task, through the layers, normalisation
and rectifiers before it. All this can be followed in closed form, without an image.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.atoms.layers import atom_layers
from fscl.compare.moment_steps import CorrelationPath
from fscl.compare.trace import trace
from fscl.errors import FsclError

__all__ = ["moment_similarity"]

Call = Callable[[nn.Module, Tensor], object]
FARTHEST = 16  # largest lag of the images, in pixels in each direction
BLOCK = 2**22  # values of the lag maps of one block of pairs


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
    """Task-to-task similarity of features, for images with the spectrum of natural images, in closed form.

    The similarity is the squared correlation of the two networks' features at the same position. To get it, the
    correlation is followed from layer to layer as a function of the distance between positions, averaged over channels.
    A convolution maps it linearly: by the correlation of the two tasks' atoms, weighted by the Gram matrices of the
    shared coefficients. Normalisation and rectifier map it by the Hermite coefficients of ``relu(scale * x + shift)``
    for normal x, with the scale and shift of each task's channels. Pooling and strides keep a part of the positions.
    Where shortcuts are added or joined, covariances are, too.

    The result is exact for one layer of linear filters on stationary input. For more layers it assumes that features
    are normal, and that channels, and summands, are independent of each other.

    Args:
        bank: T tasks.
        model: their network, with rectifiers. It is run once on a blank image, to record its operations. Convolutions
            without atoms are taken from it.
        shape: of an input image: (channels, height, width).
        exponent: exponent of the images' amplitude spectrum, as in :func:`fscl.similarity.noise_images`.
        colour: correlation of the images' channels with each other; natural images are nearly grey.
        terms: terms of the Hermite series. 1 treats the rectifier as a gain. More terms are right if channels are
            independent. In deep networks they are not, and more terms then give too little similarity.
        normalisation: False ignores the normalisation's scale and shift, as if all were 1 and 0.
        per_layer: return (L, T, T), without the mean over layers.
        call: makes the pass from (model, images), if ``model(images)`` does not.

    Returns:
        (T, T) or (L, T, T) in float64 on the CPU, in [0, 1], 1 on the diagonal.

    Raises:
        FsclError: the bank is empty or belongs to another network, the pass does not reach a layer, or an argument is
            out of range.

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
        values = f"{terms} terms, exponent {exponent}, colour {colour}"
        raise FsclError(f"{values}; at least 1 term, an exponent of 0 or more and a colour from 0 to 1 would do")
    if not bank.tasks:
        raise FsclError("the bank is empty; store a task first")
    if unknown := [name for name in bank.layers if name not in atom_layers(model)]:
        raise FsclError(f"the network has no atom layer {unknown[0]!r}; the bank belongs to another network")
    path = CorrelationPath(bank, model, shape[0], trace(model, shape, call), terms, normalisation, colour)
    if missing := set(bank.layers) - {step.layer for step in path.steps}:
        operations = "convolution, normalisation, rectifier, pooling, sum, join of channels"
        raise FsclError(
            f"a pass does not reach layer {sorted(missing)[0]!r} by operations that can be followed ({operations}); "
            "give a `call` that makes such a pass"
        )
    side = max(shape[1:])
    first = _autocorrelation(side, min(path.reach, FARTHEST, (side - 1) // 2), exponent)
    tasks = torch.arange(len(bank))
    alone = path.carry(first, tasks, tasks, None)
    rows, columns = torch.tril_indices(len(bank), len(bank), -1)
    matrices_by_layer = {layer: torch.ones(len(bank), len(bank), dtype=torch.float64) for layer in bank.layers}
    block = max(1, BLOCK // (first.numel() * len(path.steps)))
    for u, v in zip(rows.split(block), columns.split(block), strict=True):
        for place, between in path.carry(first, u, v, alone).items():
            if (layer := path.steps[place].layer) in matrices_by_layer:
                matrices_by_layer[layer][u, v] = matrices_by_layer[layer][v, u] = between.square().clamp(max=1)
    matrices = torch.stack(list(matrices_by_layer.values()))
    return matrices if per_layer else matrices.mean(0)


def _autocorrelation(side: int, far: int, exponent: float) -> Tensor:
    """Autocorrelation of :func:`fscl.similarity.noise_images`: (2 far + 1, 2 far + 1), 1 in the middle."""
    waves = torch.fft.fftfreq(side, dtype=torch.float64)
    frequency = torch.hypot(waves[:, None], waves[None])
    frequency[0, 0] = 1 / side  # as in `noise_images`
    power = frequency ** (-2 * exponent)
    lags = torch.arange(-far, far + 1) % side
    correlation = torch.fft.ifft2(power).real[lags][:, lags]
    return correlation / correlation[far, far]
