"""Requests to change the pool, of the caller's arguments. All raise TypeError or WrongArgument for values
that cannot be sent."""

from functools import partial

from tokenmux.client.errors import WrongArgument
from tokenmux.client.message_making import made
from tokenmux.v1 import pool_pb2


def resize_request(arena_bytes: int, instance: int | None) -> pool_pb2.ResizeDeviceRequest:
    return made(pool_pb2.ResizeDeviceRequest, arena_bytes=arena_bytes, instance=instance)


def drain_request(instance: int, *, undo: bool) -> pool_pb2.DrainDeviceRequest:
    return made(pool_pb2.DrainDeviceRequest, instance=instance, undo=undo)


def remove_request(instance: int) -> pool_pb2.RemoveDeviceRequest:
    return made(pool_pb2.RemoveDeviceRequest, instance=instance)


_KINDS = {
    None: pool_pb2.DEVICE_KIND_UNSPECIFIED,
    "cpu": pool_pb2.DEVICE_KIND_CPU,
    "cuda": pool_pb2.DEVICE_KIND_CUDA,
}


_PAGINGS = {
    None: pool_pb2.PAGED_KV_UNSPECIFIED,
    "exact": pool_pb2.PAGED_KV_EXACT,
    "int8": pool_pb2.PAGED_KV_INT8,
}


def add_device_request(
    kind: str | None, arena_bytes: int, gpu: str | int, paged_kv: str | None
) -> pool_pb2.AddDeviceRequest:
    if kind not in _KINDS:
        raise WrongArgument(f"kind: {kind!r} is not a kind of device: write 'cpu' or 'cuda'")
    if paged_kv not in _PAGINGS:
        raise WrongArgument(f"paged_kv: {paged_kv!r} is not a way to page: write 'exact' or 'int8'")
    return made(
        partial(pool_pb2.AddDeviceRequest, kind=_KINDS[kind]),
        arena_bytes=arena_bytes,
        gpu=str(gpu),
        paged_kv=_PAGINGS[paged_kv],
    )
