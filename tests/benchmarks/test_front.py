"""A short form of the benchmark: both servers send the same streams, and a wrong one is noticed."""

from pathlib import Path

import pytest

from benchmarks import front
from benchmarks.front import check, stream_all
from benchmarks.streaming_servers import Server
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.v1 import inference_pb2


async def test_front_and_bare_server_send_the_same_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "N_STREAMS", 5)
    monkeypatch.setattr(front, "N_OUTPUT", 4)
    Catalogue(tmp_path).register_folder(front.MODEL, tiny.create("llama", tmp_path / "llama"))
    tokens = [(70 + i, chr(70 + i)) for i in range(3)]
    ids = [token for token, _ in tokens]
    with (
        Server("null_front", (str(tmp_path), 0.01, ids)) as real,
        Server("bare_grpc", (0.01, tokens)) as bare,
    ):
        for server in (real, bare):
            taken_s = 0.0
            for _ in range(50):  # processor time is counted in hundredths of a second
                streams = await stream_all(server, ids)
                assert 5 * 4 <= streams.n_messages <= 5 * (4 + 3)
                taken_s += streams.processor_s
                if taken_s:
                    break
            assert taken_s > 0


def test_a_stream_with_another_token_is_noticed() -> None:
    event = inference_pb2.GenerateStreamResponse(tokens=inference_pb2.TokenDelta(token_ids=[1]))
    with pytest.raises(AssertionError, match="wrong tokens"):
        check([event.SerializeToString()], [2])
