import pytest

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fscl.errors import FsclError
from fscl.federated import LocalGrid, introduce
from fscl.federated.client_app import number_of


@pytest.fixture
def grid():
    app = ClientApp()

    @app.query()
    def count(message, context):
        """Says how often this client was asked."""
        times = int(context.state.config_records.get("times", {"n": 0})["n"]) + 1
        context.state["times"] = ConfigRecord({"n": times})
        if times == 3:
            raise ValueError("three times is too often")
        return Message(RecordDict({"times": ConfigRecord({"n": times})}), reply_to=message)

    return LocalGrid(app, 3)


def asked(grid, *nodes):
    return [Message(RecordDict(), node, "query") for node in nodes]


def times(replies):
    return [reply.content.config_records["times"]["n"] for reply in replies]


def test_clients_have_a_state_each_that_lives_on(grid):
    first, second, third = grid.get_node_ids()
    assert times(grid.send_and_receive(asked(grid, first, second))) == [1, 1]
    assert times(grid.send_and_receive(asked(grid, first, third))) == [2, 1]


def test_a_client_that_raises_gives_an_error_and_keeps_its_state(grid):
    node = grid.get_node_ids()[0]
    replies = [grid.send_and_receive(asked(grid, node))[0] for _ in range(4)]
    assert replies[2].error.reason == "ValueError: three times is too often"
    assert times([replies[3]]) == [4]


def test_messages_that_were_pushed_can_be_pulled_once_each_in_any_order(grid):
    first, second, third = grid.get_node_ids()
    one, two = grid.push_messages(asked(grid, first, first))
    assert times(grid.pull_messages([one])) == [1]
    three, four = grid.push_messages(asked(grid, second, third))
    assert len({one, two, three, four}) == 4
    assert times(grid.pull_messages([four, two])) == [1, 2]
    assert grid.pull_messages([two]) == []
    assert times(grid.pull_messages([three])) == [1]


@pytest.mark.parametrize("number", [None, -1, "one", 3], ids=str)
def test_a_node_without_a_client_s_number_is_told_how_to_get_one(grid, number):
    class Context:
        node_config = {} if number is None else {"partition-id": number}

    with pytest.raises(FsclError, match=f"partition-id is {number!r}.*; start each node with --node-config"):
        number_of(Context, clients=3)


def test_a_client_introduces_itself_with_its_number_and_its_network(network):
    app = ClientApp()
    app.query()(lambda message, context: introduce(message, context, network(), num_examples=7))
    grid = LocalGrid(app, 2)
    wishes = [reply.content.config_records["fscl.wish"] for reply in grid.send_and_receive(asked(grid, 2, 3))]
    assert [wish["client"] for wish in wishes] == [0, 1]
    assert [wish["num-examples"] for wish in wishes] == [7, 7]
    assert wishes[0]["fingerprint"] == wishes[1]["fingerprint"]
    assert len(str(wishes[0]["fingerprint"])) == 16
