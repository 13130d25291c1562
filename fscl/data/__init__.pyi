from .datasets import load_images as load_images
from .images import ImageSet as ImageSet
from .places import data_root as data_root
from .places import find_data as find_data
from .transforms import ImageTransform as ImageTransform
