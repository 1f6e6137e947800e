"""Weight images: all weights of a model as one contiguous run of bytes.

Every tensor begins on a 64-byte boundary of the image, so that one copy makes a model resident and a view per
tensor makes it usable. The arena puts images at multiples of 256 bytes: each tensor then has the same
alignment up to 256 wherever its image lies, although 64 suffices within the image. An image is a file of its
own or a part of one (the data section of a safetensors file that already has the right names and types). This
module writes, maps and checks images; a manifest describes each (`manifest.py`), `conversion.py` gets the
weights, and the device copies them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.progress import Progress, no_progress
from tokenmux.models.atomic_files import atomic_file
from tokenmux.models.weights.manifest import TENSOR_ALIGNMENT, Manifest, TensorEntry

_CHUNK = 16 << 20
_SAMPLE = 4096

DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What `ITEM_BYTES` names, in torch."""

DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def map_image(manifest: Manifest, *, verify: bool = False) -> torch.Tensor:
    """The image as a memory-mapped, read-only `uint8` tensor of `n_bytes`; with `verify`, its checksum is
    compared.

    Writing to the tensor is undefined. Raises BadCheckpoint if the file is missing, too short or altered.
    """
    image = map_bytes(manifest.file, manifest.data_offset, manifest.n_bytes)
    if verify and sha256(image, str(manifest.file)) != manifest.sha256:
        raise _altered(manifest)
    return image


def _altered(manifest: Manifest) -> BadCheckpoint:
    return BadCheckpoint(
        f"{manifest.file}: the weights do not match their checksum: the file was changed after the model was "
        "registered; put the old file back, or unregister the model and register it again"
    )


def map_bytes(file: Path, offset: int, n_bytes: int) -> torch.Tensor:
    """A range of a file as a memory-mapped `uint8` tensor. Raises BadCheckpoint if the file ends before
    it."""
    end = offset + n_bytes
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BadCheckpoint(f"{file}: the weight image cannot be read ({error.strerror})") from None
    if size < end:
        raise BadCheckpoint(f"{file}: cut off at {size} bytes, the weight image ends at {end}")
    return torch.from_file(str(file), shared=False, size=end, dtype=torch.uint8)[offset:]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file looked like when its image was last read. If it has not changed, a later read can skip the
    checksum.

    `samples` covers the first bytes of every chunk, for file systems whose times cannot be trusted.
    """

    inode: tuple[int, int]
    n_bytes: int
    changed_ns: tuple[int, int]
    samples: bytes = b""

    @classmethod
    def now(cls, handle: int) -> "FileStamp":
        """The present state of the open file `handle`, without samples."""
        stat = os.fstat(handle)
        return cls((stat.st_dev, stat.st_ino), stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns))


def read_image(
    manifest: Manifest, into: memoryview, told: Callable[[int], None], *, seen: FileStamp | None = None
) -> FileStamp:
    """Read the image into a buffer of `n_bytes`; `told` is called with the size of every piece, in bytes.

    The checksum is compared unless the file is still as in `seen`, the result of an earlier call. Raises
    BadCheckpoint if the file is missing, too short, or not what was registered.
    """
    digest, samples = hashlib.sha256(), hashlib.blake2b(digest_size=16)
    try:
        with manifest.file.open("rb", buffering=0) as file:
            before = FileStamp.now(file.fileno())
            verify = seen is None or replace(seen, samples=b"") != before
            file.seek(manifest.data_offset)
            done = 0
            while done < manifest.n_bytes:
                n = file.readinto(into[done : min(done + _CHUNK, manifest.n_bytes)])
                if not n:
                    raise BadCheckpoint(
                        f"{manifest.file}: cut off; {manifest.n_bytes - done} bytes are missing"
                    )
                if verify:
                    digest.update(into[done : done + n])
                done += n
                told(n)
            for start in range(0, manifest.n_bytes, _CHUNK):
                samples.update(into[start : min(start + _SAMPLE, manifest.n_bytes)])
            changed = FileStamp.now(file.fileno()) != before
    except OSError as error:
        raise BadCheckpoint(f"{manifest.file}: the weight image cannot be read ({error.strerror})") from None
    now = replace(before, samples=samples.digest())
    if verify and digest.hexdigest() != manifest.sha256:
        raise _altered(manifest)
    if not verify and (changed or now != seen):
        raise _altered(manifest)
    return now


def sha256(image: torch.Tensor, what: str, progress: Progress = no_progress) -> str:
    """SHA-256 of a `uint8` tensor, in hex."""
    digest = hashlib.sha256()
    for start in range(0, image.numel(), _CHUNK):
        digest.update(memoryview(image[start : start + _CHUNK].numpy()))  # type: ignore[arg-type]
        progress(f"checking {what}", min(start + _CHUNK, image.numel()), image.numel())
    return digest.hexdigest()


def write_image(
    path: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    source: str,
    dtype: torch.dtype,
    n_bytes: int,
    progress: Progress = no_progress,
) -> Manifest:
    """Write tensors as an image file, each on its boundary, atomically. Returns its manifest, not saved.

    `n_bytes` is the expected total size, for the progress and to refuse early if the disk lacks room. Raises
    DoesNotFit if the disk is full, and leaves nothing behind.
    """
    digest = hashlib.sha256()
    entries: dict[str, TensorEntry] = {}
    offset = 0
    with atomic_file(path, n_bytes=n_bytes) as out:
        for name, tensor in tensors:
            padding = -offset % TENSOR_ALIGNMENT
            raw = memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            for piece in (bytes(padding), raw):
                out.write(piece)
                digest.update(piece)
            offset += padding
            entries[name] = TensorEntry(
                name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), offset, raw.nbytes
            )
            offset += raw.nbytes
            progress(f"converting {source}", offset, max(n_bytes, offset))
    return Manifest(source, DTYPE_NAMES[dtype], path, 0, offset, digest.hexdigest(), entries)
