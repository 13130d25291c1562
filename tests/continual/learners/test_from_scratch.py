import torch

from fscl.accuracy import backward_transfer
from fscl.continual import AccuracyRecorder, FromScratchPlugin


def test_every_task_keeps_its_own_network(learner, stream, outputs, starts):
    recorder = AccuracyRecorder()
    strategy = learner("from_scratch", plugins=[outputs, recorder, starts])
    after_own, matrix = [], []
    for t, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        x = torch.stack([stream.test_stream[t].dataset.eval()[i][0] for i in range(len(stream.test_stream[t].dataset))])
        with torch.no_grad():
            after_own.append(strategy.model.eval()(x, torch.full((len(x),), t)).clone())
        matrix.append(recorder.accuracies(strategy, stream.test_stream))
    said = outputs.say(strategy, stream.test_stream)
    assert all(torch.equal(a, b) for a, b in zip(said, after_own, strict=True))
    assert backward_transfer(matrix) == 0
    body = {n: t for n, t in starts.states[0].items() if "classifier" not in n}
    assert len(body) == 12
    for start in starts.states[1:]:
        assert all(torch.equal(start[n], t) for n, t in body.items())
    final = strategy.model.state_dict()
    assert not any(torch.equal(final[n], t) for n, t in body.items() if t.is_floating_point() and t.ndim == 4)


def test_an_independent_network_does_not_depend_on_earlier_tasks(learner, stream):
    """With equal weights, head and random numbers, a second task ends as it would as the first task."""
    networks = []
    for earlier in ([], [0]):
        strategy = learner("from_scratch", train_epochs=1)
        for t in earlier:
            strategy.train(stream.train_stream[t])
        torch.manual_seed(3)
        strategy.train(stream.train_stream[1])
        networks.append(strategy.from_scratch.networks[1])
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][n], t) for n, t in networks[1].items())


def test_from_scratch_continues_a_task_trained_again_from_its_network(learner, stream, starts):
    strategy = learner("from_scratch", plugins=[starts])
    for t in (0, 1):
        strategy.train(stream.train_stream[t])
    first = dict(strategy.from_scratch.networks[0])
    second = dict(strategy.from_scratch.networks[1])
    strategy.train(stream.train_stream[0])
    assert all(torch.equal(starts.states[2][n], t) for n, t in first.items())
    assert all(torch.equal(strategy.from_scratch.networks[1][n], t) for n, t in second.items())


def test_evaluation_does_not_change_from_scratch_networks(learner, stream):
    networks = []
    for looks in (False, True):
        strategy = learner("from_scratch")
        for experience in stream.train_stream:
            if looks:
                strategy.eval(list(stream.test_stream))
            strategy.train(experience)
        networks.append(strategy.from_scratch.networks)
    for t in range(3):
        assert all(torch.equal(networks[0][t][n], v) for n, v in networks[1][t].items())


def test_from_scratch_memory_is_one_network_for_each_task(learner, network, stream):
    plugin = FromScratchPlugin()
    assert plugin.memory() == {"other": 0}
    strategy = learner("naive", plugins=[plugin], train_epochs=1)
    for experience in stream.train_stream:
        strategy.train(experience)
    assert plugin.memory() == {"other": sum(t.nbytes for t in network().state_dict().values())}
    assert plugin.shared_memory() == {}
    assert set(plugin.networks) == {0, 1, 2}
