"""What is yours: a network, the images of a client, training and testing."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fscl


def make_network():
    """The network of the server and of all clients, built alike, with equal values."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return fscl.decompose(net, num_atoms=6).model


def load_images(client, clients):
    """A client's images of four of the ten digits: for training, and for testing."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(digits)
    mine = torch.isin(labels, torch.arange(4) + 2 * client % 7)
    images, labels = images[mine][client::clients], labels[mine][client::clients]
    return (images[:-40], labels[:-40]), (images[-40:], labels[-40:])


def train(net, images, labels, epochs=2):
    """A plain loop. Parameters that are frozen have ``requires_grad`` False."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def count_correct(net, images, labels):
    return int((net.eval()(images).argmax(1) == labels).sum())
