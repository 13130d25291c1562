import pytest
import torch
from torch import Tensor, nn

from fscl.atoms import AtomBank, decompose, freeze_coefficients

# the entries of `Net` that belong to each task
OF_A_TASK = {
    "atoms": ["first.atoms", "second.atoms"],
    "normalisation": [
        *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "group.weight",
        "group.bias",
    ],
    "head": ["classifier.weight", "classifier.bias"],
    "other": ["first.bias", "pointwise.bias"],
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.hidden = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pointwise(torch.relu(self.norm(self.first(x)))))
        return self.classifier(torch.relu(self.hidden(self.group(self.second(x)).mean((2, 3)))))


class Tasks:
    """A bank of three tasks, the network that learned them, and its outputs for each task."""

    def __init__(self) -> None:
        self.x = torch.randn(4, 1, 8, 8)
        self.model = self.fresh()
        self.model.train()(torch.randn(16, 1, 8, 8))
        freeze_coefficients(self.model)
        self.bank = AtomBank(self.model)
        self.outputs: list[Tensor] = []
        for task in range(3):
            self.become_another()
            self.bank.store(self.model, task, name=f"task {task}")
            self.outputs.append(self.say(self.model))

    @staticmethod
    def fresh() -> nn.Module:
        return decompose(Net()).model

    @torch.no_grad()
    def become_another(self) -> None:
        state = self.model.state_dict()
        for name in (name for names in OF_A_TASK.values() for name in names):
            if state[name].is_floating_point():
                state[name].add_(0.3 * torch.randn_like(state[name])).abs_()
        self.model.train()(torch.randn(16, 1, 8, 8))

    @torch.no_grad()
    def say(self, model: nn.Module) -> Tensor:
        return model.eval()(self.x).clone()


@pytest.fixture
def three_tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def of_a_task() -> dict[str, list[str]]:
    return OF_A_TASK
