from .architecture import Architecture as Architecture
from .files import check_enough as check_enough
from .files import find_checkpoints as find_checkpoints
from .reading import Checkpoints as Checkpoints
from .reading import load_checkpoints as load_checkpoints
from .reading import read_checkpoint as read_checkpoint
