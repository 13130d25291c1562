"""The Avalanche side: the strategy, the plugin, the metrics, streams and evaluation."""

from fscl.continual.datasets import load_images
from fscl.continual.evaluate import AccuracyRecorder, class_mean_accuracy
from fscl.continual.from_scratch import FromScratch, FromScratchPlugin
from fscl.continual.loader import InMemoryLoader
from fscl.continual.metrics import SubspaceSimilarity, subspace_similarity_metrics
from fscl.continual.networks import ConvNet, build_network
from fscl.continual.strategy import AtomSwapping, AtomSwappingPlugin
from fscl.continual.stream import Stream, split_classes
from fscl.continual.transforms import ImageTransform

__all__ = [
    "AccuracyRecorder",
    "AtomSwapping",
    "AtomSwappingPlugin",
    "ConvNet",
    "FromScratch",
    "FromScratchPlugin",
    "ImageTransform",
    "InMemoryLoader",
    "Stream",
    "SubspaceSimilarity",
    "build_network",
    "class_mean_accuracy",
    "load_images",
    "split_classes",
    "subspace_similarity_metrics",
]
