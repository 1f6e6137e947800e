"""Devices that are too small for some models, and a machine that has three of them."""

from collections.abc import Collection, Iterable

from tokenmux.core.errors import DoesNotFit, InvalidRequest
from tokenmux.core.facts import DeviceFacts, ModelFacts
from tokenmux.messages.setups import DeviceSetup
from tokenmux.server.front.device_source import WantedDevice

ARENA_BYTES = 10_000


def device_setup(arena_bytes: int = ARENA_BYTES, gpu: str = "") -> DeviceSetup:
    device = DeviceFacts("virtual GPU", arena_bytes, 6_000, 1.0, 1.0, 1.0, 1.0)
    return DeviceSetup(device, "cuda" if gpu else "cpu", gpu)


class SmallDevices:
    """The arena is for a model beside the pinned ones, and 10,000 bytes of it have room for 60 tokens."""

    def check_model(self, device: DeviceFacts, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        held = sum(other.n_bytes for other in pinned if other.id != model.id)
        if model.n_bytes + held > device.arena_bytes:
            raise DoesNotFit(
                f"{model.id} needs {model.n_bytes} bytes, the device has {device.arena_bytes}: raise "
                "device.arena"
            )

    def check_request(
        self, device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]
    ) -> None:
        self.check_model(device, model, pinned)
        if n_tokens > 60 * device.arena_bytes // ARENA_BYTES:
            raise DoesNotFit(f"{n_tokens} tokens of {model.id} do not fit the device: ask for at most 60")


class SmallMachine:
    """Has three devices, of at most 1 GiB each."""

    def make(self, wanted: WantedDevice, present: Collection[DeviceSetup]) -> DeviceSetup:
        if len(present) >= 3:
            raise DoesNotFit("this machine has three devices: take one out first")
        if wanted.gpu == "none":
            raise InvalidRequest("there is no GPU none")
        setup = device_setup(wanted.arena_bytes or ARENA_BYTES, wanted.gpu)
        self.check_resize(setup, setup.facts.arena_bytes)
        return setup

    def check_resize(self, device: DeviceSetup, arena_bytes: int) -> None:
        if arena_bytes > 1 << 30:
            raise DoesNotFit(f"an arena of {arena_bytes} bytes: this machine has 1 GiB")
