from .atoms import AtomBank as AtomBank
from .atoms import AtomConv2d as AtomConv2d
from .atoms import decompose as decompose
from .atoms import freeze_coefficients as freeze_coefficients
from .compare import joint_decompose as joint_decompose
from .continual import AtomSwapping as AtomSwapping
from .continual import AtomSwappingPlugin as AtomSwappingPlugin
from .continual import subspace_similarity_metrics as subspace_similarity_metrics
from .errors import FsclError as FsclError
from .report.runs import load_runs as load_runs
from .runs.serving import load_network as load_network
from .similarity import mantel as mantel
from .similarity import similarity_matrix as similarity_matrix

__version__: str
