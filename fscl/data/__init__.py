"""Images in memory: data sets and folders, their split into tasks, and augmentation. Needs torch alone."""

from fscl.data.datasets import load_images
from fscl.data.images import ImageSet
from fscl.data.transforms import ImageTransform

__all__ = ["ImageSet", "ImageTransform", "load_images"]
