"""The folders of the package import only downwards. The contracts are in pyproject.toml."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]


def test_imports_of_the_package_point_down():
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS


def test_a_file_has_at_most_350_lines_and_a_folder_15_modules():
    files = [*(ROOT / "fscl").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 200
    assert [str(file) for file in files if len(file.read_text().splitlines()) > 350] == []
    folders = Counter(file.parent for file in files)
    assert [str(folder) for folder, modules in folders.items() if modules > 15] == []


PLAIN_PYTORCH = """
import sys
sys.modules["avalanche"] = sys.modules["torchmetrics"] = None  # their imports fail

import torch
import fscl
from fscl.cli.app import main
from fscl.data import load_images
from fscl.networks import make_network
from fscl.plots import similarity_heatmap

train, _ = load_images("digits")
net = make_network("convnet", (1, 8, 8), 2, {"widths": [4, 8], "pool_after": [0]})
model = fscl.decompose(net, num_atoms=4).model
bank = fscl.AtomBank(model)
bank.store(model, 0)
bank.begin(model, start=0)
optimizer = torch.optim.SGD(bank.parameters(model), 0.1)
model(train.images[:8] / 255).square().sum().backward()
optimizer.step()
bank.store(model, 1)
before = model.eval()(train.images[:8] / 255)
assert torch.equal(bank.network(model, 1).eval()(train.images[:8] / 255), before)
similarity = fscl.similarity_matrix(bank)
assert similarity.shape == (2, 2)
metric = fscl.similarity.LinearCKA()
metric.update(torch.eye(8), torch.eye(8))
assert abs(metric.compute() - 1) < 1e-12
similarity_heatmap(similarity.numpy(), ["a", "b"]).figure.savefig("heatmap.png")
torch.save(bank.network(model, 0).state_dict(), "0.pt")
bank.save("bank.safetensors")
try:
    fscl.AtomSwapping
except ModuleNotFoundError as error:
    assert "avalanche" in str(error)
else:
    raise AssertionError("Avalanche was imported")
for arguments in (["similarity", "a.pth", "b.pth"], ["heatmap", "bank.safetensors", "-o", "bank.png"]):
    sys.argv = ["fscl", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
"""


def test_atoms_banks_comparison_and_plots_work_without_avalanche(tmp_path):
    for name in ("a", "b"):
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
    command = [sys.executable, "-c", PLAIN_PYTORCH]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "similarity/similarity.csv").is_file()
    assert (tmp_path / "bank.png").is_file()


def test_import_fscl_does_not_import_heavy_packages():
    """``import fscl`` and the command line start quickly. torch and Avalanche are imported when they are needed."""
    code = "import sys, fscl, fscl.files; print(sorted({'torch', 'avalanche', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_folders_whose_names_are_fetched_on_use_show_them_without_torch():
    code = """
import sys
import fscl.compare, fscl.data, fscl.similarity
folders = (fscl.compare, fscl.data, fscl.similarity)
names = [dir(folder) for folder in folders]
assert "mantel" in dir(fscl.similarity)
assert fscl.similarity.mantel.__module__ == "fscl.similarity.correlation"
assert "torch" not in sys.modules
for folder, shown in zip(folders, names):
    assert shown == folder.__all__
    for name in shown:
        getattr(folder, name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
