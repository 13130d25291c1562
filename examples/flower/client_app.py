"""The client: takes the parts that the server sent, trains, and returns the parts that the server asked for."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from task import count_correct, load_images, make_network, train

from fscl.federated import ClientParts, introduce, lost_parts_mod, tested

app = ClientApp(mods=[lost_parts_mod])  # a client that lost its normalisation and head begins anew


def received(message: Message, context: Context) -> ClientParts:
    """The parts of this client. With a folder they outlive its process."""
    parts = ClientParts(make_network(), context, folder=context.node_config.get("folder"))
    parts.receive(message)
    return parts


@app.query()
def say_who(message: Message, context: Context) -> Message:
    (images, _), _ = load_images(context.node_config["partition-id"], context.node_config["num-partitions"])
    return introduce(message, context, make_network(), num_examples=len(images))


@app.train()
def fit(message: Message, context: Context) -> Message:
    parts = received(message, context)
    (images, labels), _ = load_images(context.node_config["partition-id"], context.node_config["num-partitions"])
    loss = train(parts.model, images, labels)
    return parts.answer(message, num_examples=len(images), loss=loss)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    parts = received(message, context)
    _, (images, labels) = load_images(context.node_config["partition-id"], context.node_config["num-partitions"])
    return tested(message, correct=count_correct(parts.model, images, labels), num_examples=len(images))
