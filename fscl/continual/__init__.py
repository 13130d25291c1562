"""The Avalanche side: the strategy, the plugin, the metrics, streams and evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fscl.continual.acceleration import Acceleration
    from fscl.continual.atom_ensemble import AtomEnsemble, AtomEnsemblePlugin
    from fscl.continual.atom_selection import AtomSelection
    from fscl.continual.bounds import FrozenFeatures, FrozenFeaturesPlugin, Joint
    from fscl.continual.datasets import load_images
    from fscl.continual.domains import permuted_stream, rotated_stream
    from fscl.continual.evaluate import AccuracyRecorder, class_mean_accuracy
    from fscl.continual.from_scratch import FromScratch, FromScratchPlugin
    from fscl.continual.icarl import ICaRL
    from fscl.continual.loader import InMemoryLoader
    from fscl.continual.metrics import SubspaceSimilarity, subspace_similarity_metrics
    from fscl.continual.networks import ConvNet, build_network
    from fscl.continual.packnet import PackNet, PackNetPlugin
    from fscl.continual.pnn import PNN, PNNPlugin
    from fscl.continual.strategy import AtomSwapping, AtomSwappingPlugin
    from fscl.continual.stream import Stream, split_classes
    from fscl.continual.transforms import ImageTransform
    from fscl.continual.wsn import WSN, WSNPlugin

__all__ = [
    "PNN",
    "WSN",
    "Acceleration",
    "AccuracyRecorder",
    "AtomEnsemble",
    "AtomEnsemblePlugin",
    "AtomSelection",
    "AtomSwapping",
    "AtomSwappingPlugin",
    "ConvNet",
    "FromScratch",
    "FromScratchPlugin",
    "FrozenFeatures",
    "FrozenFeaturesPlugin",
    "ICaRL",
    "ImageTransform",
    "InMemoryLoader",
    "Joint",
    "PNNPlugin",
    "PackNet",
    "PackNetPlugin",
    "Stream",
    "SubspaceSimilarity",
    "WSNPlugin",
    "build_network",
    "class_mean_accuracy",
    "load_images",
    "permuted_stream",
    "rotated_stream",
    "split_classes",
    "subspace_similarity_metrics",
]

# importing Avalanche takes seconds, and `fscl list` or a data set need none of it: fetched when first used
_HOMES = {
    "Acceleration": "fscl.continual.acceleration",
    "AccuracyRecorder": "fscl.continual.evaluate",
    "AtomEnsemble": "fscl.continual.atom_ensemble",
    "AtomEnsemblePlugin": "fscl.continual.atom_ensemble",
    "AtomSelection": "fscl.continual.atom_selection",
    "AtomSwapping": "fscl.continual.strategy",
    "AtomSwappingPlugin": "fscl.continual.strategy",
    "ConvNet": "fscl.continual.networks",
    "FromScratch": "fscl.continual.from_scratch",
    "FromScratchPlugin": "fscl.continual.from_scratch",
    "FrozenFeatures": "fscl.continual.bounds",
    "FrozenFeaturesPlugin": "fscl.continual.bounds",
    "ICaRL": "fscl.continual.icarl",
    "ImageTransform": "fscl.continual.transforms",
    "InMemoryLoader": "fscl.continual.loader",
    "Joint": "fscl.continual.bounds",
    "PackNet": "fscl.continual.packnet",
    "PackNetPlugin": "fscl.continual.packnet",
    "PNN": "fscl.continual.pnn",
    "PNNPlugin": "fscl.continual.pnn",
    "Stream": "fscl.continual.stream",
    "SubspaceSimilarity": "fscl.continual.metrics",
    "WSN": "fscl.continual.wsn",
    "WSNPlugin": "fscl.continual.wsn",
    "build_network": "fscl.continual.networks",
    "class_mean_accuracy": "fscl.continual.evaluate",
    "load_images": "fscl.continual.datasets",
    "permuted_stream": "fscl.continual.domains",
    "rotated_stream": "fscl.continual.domains",
    "split_classes": "fscl.continual.stream",
    "subspace_similarity_metrics": "fscl.continual.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fscl.continual' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
