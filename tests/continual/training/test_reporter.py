"""Values that a run logs for an epoch equal those of Avalanche's own metrics, under the same names."""

import pytest
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from fscl.continual.training.reporter import Reporter


@pytest.mark.parametrize("kind", ["naive", "atom_swapping"])
def test_the_curves_of_epochs_equal_avalanche_s_metrics(learner, stream, kind):
    """Also with exemplars in the mini-batches, which then have several task labels."""
    reporter, logged = Reporter(None), {}

    def log(step, scalars, figures):
        assert figures == {}
        for name, value in scalars.items():
            logged.setdefault(name, []).append((step, value))

    reporter.log = log
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loss_metrics(epoch=True), loggers=[])
    replay = [ReplayPlugin(mem_size=20)] if kind == "naive" else []
    strategy = learner(kind, evaluator=evaluator, plugins=[reporter, *replay])
    for experience in stream.train_stream:
        strategy.train(experience)
    theirs = evaluator.get_all_metrics()
    assert len(logged) == 6  # loss and accuracy of three tasks
    for name, points in logged.items():
        assert [value for _, value in points] == pytest.approx(theirs[name][1], rel=1e-5), name
        learned = int(name[-3:])
        assert [step - learned for step, _ in points] == theirs[name][0], name
