"""Continual learning on Avalanche: streams, learners, metrics and evaluation, and the images and networks they use."""

from fscl.continual.domains import permuted_stream, rotated_stream
from fscl.continual.evaluate import AccuracyRecorder, class_mean_accuracy
from fscl.continual.heads import build_network
from fscl.continual.learner import LearnerPlugin, PluginStrategy
from fscl.continual.learners.atom_ensemble import AtomEnsemble, AtomEnsemblePlugin
from fscl.continual.learners.atom_selection import AtomSelection
from fscl.continual.learners.atom_swapping import AtomSwapping, AtomSwappingPlugin
from fscl.continual.learners.bounds import FrozenFeatures, FrozenFeaturesPlugin, Joint
from fscl.continual.learners.from_scratch import FromScratch, FromScratchPlugin
from fscl.continual.learners.icarl import ICaRL
from fscl.continual.learners.packnet import PackNet, PackNetPlugin
from fscl.continual.learners.pnn import PNN, PNNPlugin
from fscl.continual.learners.wsn import WSN, WSNPlugin
from fscl.continual.loader import InMemoryLoader
from fscl.continual.loggers import CSVLogger, WandBLogger
from fscl.continual.metrics import SubspaceSimilarity, subspace_similarity_metrics
from fscl.continual.stream import Stream, split_classes
from fscl.continual.training.acceleration import Acceleration
from fscl.data import ImageTransform, load_images
from fscl.networks import ConvNet

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
    "CSVLogger",
    "ConvNet",
    "FromScratch",
    "FromScratchPlugin",
    "FrozenFeatures",
    "FrozenFeaturesPlugin",
    "ICaRL",
    "ImageTransform",
    "InMemoryLoader",
    "Joint",
    "LearnerPlugin",
    "PNNPlugin",
    "PackNet",
    "PackNetPlugin",
    "PluginStrategy",
    "Stream",
    "SubspaceSimilarity",
    "WSNPlugin",
    "WandBLogger",
    "build_network",
    "class_mean_accuracy",
    "load_images",
    "permuted_stream",
    "rotated_stream",
    "split_classes",
    "subspace_similarity_metrics",
]
