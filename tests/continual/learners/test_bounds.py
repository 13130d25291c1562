import torch
from avalanche.core import SupervisedPlugin

from fscl.continual.learner import Learner
from fscl.continual.training.trainer import Trainer
from fscl.settings import Network, Training


class Seen(SupervisedPlugin):
    """Counts the training images of each task, epoch by epoch."""

    supports_distributed = False

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append({})

    def after_training_iteration(self, strategy, **kwargs):
        for task in strategy.mb_task_id.tolist():
            self.epochs[-1][task] = self.epochs[-1].get(task, 0) + 1


def trainer_of(stream, class_path, **options):
    network = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}
    training = Training(**{"epochs": 2, "batch_size": 24, **options})
    trainer = Trainer(stream, Learner(class_path), training, Network(args=network))
    seen = Seen()
    trainer.strategy.plugins.append(seen)
    return trainer, seen


def test_joint_training_trains_on_all_tasks_in_the_first_experience_only(stream):
    trainer, seen = trainer_of(stream, "fscl.continual.Joint")
    sizes = {task: len(e.dataset) for task, e in enumerate(stream.train_stream)}
    trainer.train_next()
    assert seen.epochs == [sizes, sizes]
    state = {n: t.clone() for n, t in trainer.strategy.model.state_dict().items()}
    trainer.train_next()
    trainer.train_next()
    assert len(seen.epochs) == 2
    assert all(torch.equal(t, state[n]) for n, t in trainer.strategy.model.state_dict().items())


def test_joint_training_is_accurate_on_all_tasks_after_the_first_experience(stream):
    trainer, _ = trainer_of(stream, "fscl.continual.Joint", epochs=15)
    measured = [trainer.train_next().accuracy for _ in range(3)]
    assert measured[0] == measured[2][:1]
    assert measured[1] == measured[2][:2]
    assert min(measured[2]) > 0.8  # of chance 0.5


def test_frozen_features_train_only_heads_after_the_first_experience(stream):
    trainer, _ = trainer_of(stream, "fscl.continual.FrozenFeatures")
    start = {n: t.clone() for n, t in trainer.strategy.model.state_dict().items()}
    trainer.train_next()
    first = {n: t.clone() for n, t in trainer.strategy.model.state_dict().items()}
    body = [n for n in first if "classifier" not in n]
    assert not any(torch.equal(first[n], start[n]) for n in body if first[n].is_floating_point())
    trainer.train_next()
    trainer.train_next()
    last = trainer.strategy.model.state_dict()
    assert all(torch.equal(last[n], first[n]) for n in body)  # statistics of normalisation, too
    assert all(torch.equal(last[n], first[n]) for n in first)  # nor does the first head move
    heads = [last[f"classifier.classifiers.{task}.classifier.weight"] for task in range(3)]
    assert not torch.equal(heads[1], heads[2])


def test_frozen_features_do_not_forget(stream):
    trainer, _ = trainer_of(stream, "fscl.continual.FrozenFeatures", epochs=4)
    rows = [trainer.train_next().accuracy for _ in range(3)]
    assert rows[2][0] == rows[1][0] == rows[0][0]
    assert rows[2][1] == rows[1][1]
