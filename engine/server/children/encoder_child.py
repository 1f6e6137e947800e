"""A child process that turns prompts into token ids, for any model of the catalogue;
`tokenmux.server.children.encoder_children` is its other side.

It imports neither torch nor transformers, so it starts in a tenth of a second and 30 MB. A question is a JSON
object (`path` of the entry, `digest` of its tokenizer, `kind`) with the text, or the conversation or words
as JSON, beside it; the answer is token ids as 32-bit integers, those of each word after their number.
"""

import json
import resource
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tokenmux.models.text.encoder import Encoder
from tokenmux.models.text.template import TemplateInput
from tokenmux.server.children.child_main import Reply, Tell, run

MOST_ENCODERS = 16
"""Number of tokenizers kept loaded. The least recently used one is dropped, also when half of the memory is
used."""


class Encoders:
    """The tokenizers that this process has loaded."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[str, str], Encoder] = OrderedDict()

    def handle(self, header: dict[str, Any], payload: bytes, report: Tell) -> Reply:
        encoder = self._encoder(str(header["path"]), str(header["digest"]))
        return {}, array("i", _ids(encoder, header["kind"], payload)).tobytes()

    def _encoder(self, path: str, digest: str) -> Encoder:
        key = path, digest
        if key not in self._loaded:
            while self._loaded and (len(self._loaded) >= MOST_ENCODERS or _half_used()):
                self._loaded.popitem(last=False)
            self._loaded[key] = Encoder.load(Path(path))
        self._loaded.move_to_end(key)
        return self._loaded[key]


def _ids(encoder: Encoder, kind: str, payload: bytes) -> list[int]:
    match kind:
        case "chat":
            given = json.loads(payload)
            return encoder.encode_chat(given.pop("messages"), TemplateInput(**given))
        case "words":
            texts = json.loads(payload)
            found = [encoder.encode(text, add_special_tokens=False) for text in texts]
            return [number for ids in found for number in (len(ids), *ids)]
        case _:
            return encoder.encode(payload.decode())


def _half_used() -> bool:
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit_bytes == resource.RLIM_INFINITY:
        return False
    try:
        n_pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:
        return False
    return n_pages * resource.getpagesize() > limit_bytes / 2


if __name__ == "__main__":
    run(Encoders().handle)
