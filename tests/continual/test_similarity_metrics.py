import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure

from fscl.accuracy import forgetting_matrix
from fscl.atoms import AtomConv2d
from fscl.compare.filter_history import FilterHistory
from fscl.continual import AccuracyRecorder, class_mean_accuracy, split_classes, subspace_similarity_metrics
from fscl.errors import FsclError
from fscl.similarity import mantel, similarity_matrix

NAME = "SubspaceSimilarity_cosine"


def evaluator(folder=None, **options):
    metrics = subspace_similarity_metrics(**options)
    loggers = []
    if folder is not None:
        log = open(folder / "log.txt", "w")  # noqa: SIM115 - the logger writes to it until the test ends
        loggers = [TensorboardLogger(folder / "board"), CSVLogger(str(folder / "csv")), TextLogger(log)]
    plugin = EvaluationPlugin(*metrics, accuracy_metrics(experience=True), loggers=loggers)
    return plugin, metrics[0], loggers


def filters(model):
    return {
        n: m.weight.detach().clone()
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Conv2d | AtomConv2d) and m.kernel_size != (1, 1)
    }


def projected(snapshots):
    """An oracle: the filters of each snapshot are projected on the span of the first one's, and compared as filters."""
    layers = []
    for name in snapshots[0]:
        flat = torch.stack([s[name].double().flatten(2).flatten(0, 1) for s in snapshots])
        onto = flat[0] @ torch.linalg.pinv(flat[0])
        kept = (onto @ flat).flatten(1)
        layers.append(torch.stack([torch.cosine_similarity(k[None], kept) for k in kept]))
    return torch.stack(layers).square().prod(0)


@pytest.mark.parametrize("kind", ["atom_swapping", "naive"])
def test_metric_values_equal_the_similarity_matrix_and_reach_every_logger(learner, stream, kind, tmp_path):
    plugin, metric, loggers = evaluator(tmp_path)
    strategy = learner(kind, evaluator=plugin)
    snapshots, rows = [], []
    for experience in stream.train_stream:
        strategy.train(experience)
        rows.append(dict(plugin.get_last_metrics()))
        snapshots.append(filters(strategy.model))
        strategy.eval(list(stream.test_stream))
    matrix = similarity_matrix(strategy.bank) if kind == "atom_swapping" else projected(snapshots).float()
    if kind == "atom_swapping":  # with coefficients shared, projecting the composed filters loses nothing
        assert torch.allclose(matrix, projected(snapshots).float(), rtol=0, atol=1e-5)
        assert torch.equal(metric.result(), matrix)
    assert torch.allclose(metric.result(), matrix, rtol=0, atol=1e-5)
    assert 0 < matrix[1, 0] < 1
    assert not any(NAME in name for name in rows[0])
    for t in (1, 2):
        found = [rows[t][f"{NAME}/Exp{i:03d}"] for i in range(t)]
        assert found == pytest.approx(matrix[t, :t].tolist(), abs=1e-5)
    pairs = matrix[np.tril_indices(3, -1)]
    assert rows[2][f"{NAME}/mean"] == pytest.approx(float(pairs.mean()), abs=1e-5)
    assert torch.equal(rows[2][f"{NAME}/heatmap"].alternatives[1], metric.result())

    loggers[0].writer.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    images = events.Images(f"{NAME}/heatmap")
    assert len(images) == 2
    assert all(image.width > 100 and image.encoded_image_string.startswith(b"\x89PNG") for image in images)
    scalars = [e.value for e in events.Scalars(f"{NAME}/Exp000")]
    assert scalars == pytest.approx(matrix[1:, 0].tolist(), abs=1e-5)
    loggers[2].file.flush()
    assert f"{NAME}/Exp001" in (tmp_path / "log.txt").read_text()
    loggers[1].close()
    assert len((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()) == 1 + 9
    assert plt.get_fignums() == []


def test_heatmaps_are_not_registered_with_pyplot(learner, stream):
    plugin, _, _ = evaluator()
    strategy = learner(evaluator=plugin)
    for experience in stream.train_stream:
        strategy.train(experience)
    figure = plugin.get_last_metrics()[f"{NAME}/heatmap"].alternatives[0]
    assert isinstance(figure, Figure)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == stream.names
    assert plt.get_fignums() == []


def test_without_heatmap_and_correlation_only_scalars_are_emitted(learner, stream):
    plugin, _, _ = evaluator(heatmap=False, correlate=False)
    strategy = learner(evaluator=plugin, train_epochs=1)
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(list(stream.test_stream))
    ours = {n: v for n, v in plugin.get_last_metrics().items() if NAME in n}
    assert set(ours) == {f"{NAME}/Exp000", f"{NAME}/Exp001", f"{NAME}/mean"}
    assert all(isinstance(v, float) for v in ours.values())


def test_correlation_is_undefined_if_nothing_was_forgotten(learner, stream):
    plugin, metric, _ = evaluator()
    strategy = learner(evaluator=plugin)
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(list(stream.test_stream))
    last = plugin.get_last_metrics()
    assert math.isnan(last[f"{NAME}/forgetting_rho"])
    assert math.isnan(last[f"{NAME}/forgetting_p"])
    assert not metric.correlation().defined
    assert str(metric.correlation()).startswith("undefined")


def forgetful(learner, digits_stream, plugin, recorder, **options):
    strategy = learner("naive", evaluator=plugin, plugins=[recorder], train_epochs=3, **options)
    matrix = []
    for experience in digits_stream.train_stream:
        strategy.train(experience, eval_streams=[digits_stream.test_stream])
        matrix.append(recorder.accuracies(strategy, digits_stream.test_stream))
    return np.array(matrix)


@pytest.mark.parametrize("every", [-1, 1])
def test_forgetting_correlation_equals_mantel_of_measured_forgetting(learner, digits, every):
    """Periodic evaluations during training do not change it."""
    stream = split_classes(*digits, tasks=5)
    plugin, metric, _ = evaluator()
    matrix = forgetful(learner, stream, plugin, AccuracyRecorder(), eval_every=every)
    expected = mantel(metric.result(), forgetting_matrix(matrix), pairs="lower")
    found = plugin.get_last_metrics()
    assert math.isfinite(expected.statistic)
    assert found[f"{NAME}/forgetting_rho"] == expected.statistic
    assert found[f"{NAME}/forgetting_p"] == expected.p_value


def test_no_correlation_before_all_experiences_were_evaluated(learner, stream):
    plugin, metric, _ = evaluator()
    strategy = learner("naive", evaluator=plugin)
    strategy.eval(list(stream.test_stream))  # before any training
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval([stream.test_stream[experience.current_experience]])
    assert metric.correlation() is None
    assert f"{NAME}/forgetting_rho" not in plugin.get_last_metrics()


def test_forgetting_is_measured_on_the_test_stream_only(learner, digits):
    stream = split_classes(*digits, tasks=5)
    valid = split_classes(*digits, tasks=5, seed=1).test_stream  # other images under the same numbers
    for experience in valid:
        experience.origin_stream.name = "valid"
    plugin, metric, _ = evaluator()
    recorder = AccuracyRecorder()
    strategy = learner("naive", evaluator=plugin, plugins=[recorder])
    matrix = []
    for number, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        streams = [valid, stream.test_stream, valid] if number % 2 else [stream.test_stream, stream.train_stream]
        for other in streams:
            strategy.eval(list(other))
        matrix.append(recorder.accuracies(strategy, stream.test_stream))
    expected = mantel(metric.result(), forgetting_matrix(np.array(matrix)), pairs="lower")
    assert metric.correlation().statistic == expected.statistic


def test_without_a_test_stream_forgetting_is_measured_on_the_validation_stream(learner, digits):
    stream = split_classes(*digits, tasks=5)
    for experience in stream.test_stream:
        experience.origin_stream.name = "valid"
    plugin, metric, _ = evaluator()
    matrix = forgetful(learner, stream, plugin, AccuracyRecorder())
    expected = mantel(metric.result(), forgetting_matrix(matrix), pairs="lower")
    assert metric.correlation().statistic == expected.statistic


def test_transfer_correlation_equals_mantel_of_class_mean_accuracies(learner, digits):
    stream = split_classes(*digits, tasks=5)
    plugin, metric, _ = evaluator(heatmap=False, transfer=stream)
    strategy = learner(evaluator=plugin)
    measured = []
    for experience in stream.train_stream:
        strategy.train(experience)
        data = [(a.dataset, b.dataset) for a, b in zip(stream.train_stream, stream.test_stream, strict=True)]
        measured.append([class_mean_accuracy(strategy.model, *d) for d in data])
    expected = mantel(similarity_matrix(strategy.bank), np.array(measured).T)  # [i, j]: on task i, features of task j
    assert math.isfinite(expected.statistic)
    found = plugin.get_last_metrics()
    assert found[f"{NAME}/transfer_rho"] == expected.statistic
    assert found[f"{NAME}/transfer_p"] == expected.p_value
    assert metric.correlation() is None  # nothing was evaluated


@pytest.mark.parametrize("kind", ["atom_swapping", "naive"])
def test_an_experience_trained_again_moves_to_the_end_of_the_order(learner, stream, kind):
    plugin, metric, _ = evaluator(aggregate="mean")
    strategy = learner(kind, evaluator=plugin)
    snapshots = []
    for t in (0, 1, 2, 0):
        strategy.train(stream.train_stream[t])
        assert metric.correlation() is None  # what was measured before does not stand for what is now
        strategy.eval(list(stream.test_stream))
        snapshots.append(filters(strategy.model))
    history = FilterHistory()
    for found in snapshots:
        model = torch.nn.ModuleDict(
            {n.replace(".", "_"): torch.nn.Conv2d(w.shape[1], w.shape[0], 3) for n, w in found.items()}
        )
        for n, w in found.items():
            model[n.replace(".", "_")].weight = torch.nn.Parameter(w)
        history.add(model)
    expected = history.similarity(aggregate="mean")[1:, 1:]  # in the order 1, 2, 0
    assert torch.allclose(metric.result(), expected, rtol=0, atol=1e-5)
    last = plugin.get_last_metrics()
    assert last[f"{NAME}/Exp001"] == pytest.approx(float(expected[2, 0]), abs=1e-5)
    assert last[f"{NAME}/Exp002"] == pytest.approx(float(expected[2, 1]), abs=1e-5)
    assert metric.correlation() is not None


@pytest.mark.parametrize("metric", ["filter", "grassmann", "projection"])
def test_every_metric_equals_the_similarity_matrix_of_the_bank(learner, stream, metric):
    plugin, ours, _ = evaluator(metric=metric, aggregate="mean", heatmap=False)
    strategy = learner(evaluator=plugin, train_epochs=1)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert torch.equal(ours.result(), similarity_matrix(strategy.bank, metric, "mean"))
    assert f"SubspaceSimilarity_{metric}/Exp001" in plugin.get_last_metrics()


def test_reset_clears_similarity_and_correlation(learner, stream):
    plugin, metric, _ = evaluator(heatmap=False)
    strategy = learner("naive", evaluator=plugin, train_epochs=1)
    for experience in stream.train_stream:
        strategy.train(experience)
    metric.reset()
    assert metric.result() is None
    assert metric.correlation() is None


def test_unknown_metrics_and_aggregates_are_refused_with_the_known_ones():
    with pytest.raises(FsclError, match="metric is 'cka'; known: cosine, filter, grassmann, projection"):
        subspace_similarity_metrics("cka")
    with pytest.raises(FsclError, match="aggregate is 'max'; known: product, mean"):
        subspace_similarity_metrics(aggregate="max")
    with pytest.raises(FsclError, match="Linear has no spatial convolutions"):
        FilterHistory().add(torch.nn.Linear(2, 2))
