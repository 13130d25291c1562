"""The only uses of Flower's private names: messages without a server process, and their size on the wire."""

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_CRASHED",
    "CLIENT_RAISED",
    "SERVER",
    "from_bytes",
    "give_id",
    "to_bytes",
    "use_identity",
    "wire_bytes",
]

CLIENT_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CLIENT_CRASHED: int = ErrorCode.CLIENT_APP_CRASHED
SERVER = 1  # Flower's node of the server
LONGEST, DIGEST = 2**64 - 1, 64 * "f"  # names of nodes, and of messages, in a deployment


def use_identity(node: int) -> None:
    """Makes this process the node that messages come from. ``Message`` cannot be made without it."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, node


def give_id(message: Message, name: str) -> None:
    """Names a message, as Flower's grids do when they send it. The reply refers to this name."""
    message.metadata.__dict__["_message_id"] = name


def wire_bytes(message: Message) -> int:
    """Bytes of a message as protobuf: content, headers of its arrays, and metadata.

    Its address counts with names as long as those in a deployment, so that all of Flower's engines have equal numbers.
    """
    proto = message_to_proto(message)
    address = proto.metadata
    address.run_id = address.src_node_id = address.dst_node_id = address.src_task_id = address.dst_task_id = LONGEST
    address.message_id = DIGEST
    address.reply_to_message_id = DIGEST if address.reply_to_message_id else ""
    return int(proto.ByteSize())


def to_bytes(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


def from_bytes(data: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(data))
