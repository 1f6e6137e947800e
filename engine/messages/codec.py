"""Messages as bytes: MessagePack by msgspec, checked against the types of this room. Never a pickle.

A pickle can run code when it is read, and costs more: `benchmarks/messages.py` has the ratios.
"""

from typing import Generic, TypeVar

import msgspec

from tokenmux.messages.commands import Order
from tokenmux.messages.completions import Completions
from tokenmux.messages.launches import Instructions
from tokenmux.messages.mask_messages import MaskAnswers, MaskQuestions
from tokenmux.messages.reports import Reports
from tokenmux.messages.setups import ExecutorSetup, NodeSetup

Value = TypeVar("Value")


class MalformedMessage(Exception):
    """What was received is not a message; says what is wrong with it."""


class Codec(Generic[Value]):
    """Encodes values of one type, and decodes nothing else."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Value], name: str) -> None:
        """`name` says in errors what was expected."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = decoder
        self._name = name

    def encode(self, value: Value) -> bytes:
        """Encode `value`. Raises OverflowError for a number of more than 64 bits."""
        return self._encoder.encode(value)

    def decode(self, encoded: bytes | bytearray) -> Value:
        """Decode bytes. Raises MalformedMessage."""
        try:
            return self._decoder.decode(encoded)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedMessage(f"{len(encoded)} bytes that are not {self._name}: {error}") from None


NODE_SETUP: Codec[NodeSetup] = Codec(msgspec.msgpack.Decoder(NodeSetup), "a node's setup")
ORDERS: Codec[Order] = Codec(msgspec.msgpack.Decoder(Order), "a command")
REPORTS: Codec[Reports] = Codec(msgspec.msgpack.Decoder(Reports), "reports")

EXECUTOR_SETUP: Codec[ExecutorSetup] = Codec(msgspec.msgpack.Decoder(ExecutorSetup), "an executor's setup")
INSTRUCTIONS: Codec[Instructions] = Codec(msgspec.msgpack.Decoder(Instructions), "instructions")
COMPLETIONS: Codec[Completions] = Codec(msgspec.msgpack.Decoder(Completions), "completions")

MASK_QUESTIONS: Codec[MaskQuestions] = Codec(msgspec.msgpack.Decoder(MaskQuestions), "questions for masks")
MASK_ANSWERS: Codec[MaskAnswers] = Codec(msgspec.msgpack.Decoder(MaskAnswers), "masks")
