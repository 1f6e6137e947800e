"""An executor as a process, and the node's end of the socket to it.

`tokenmux.executor.executor_main` is the other end. The node imports nothing of it: torch takes seconds to
load, and a node starts in a blink.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from tokenmux.core.facts import InstanceId
from tokenmux.messages.codec import EXECUTOR_SETUP, INSTRUCTIONS
from tokenmux.messages.frame_socket import PatientSocket
from tokenmux.messages.launches import Instructions
from tokenmux.messages.setups import DeviceSetup, ExecutorSetup
from tokenmux.processes.executor_environment import executor_environment

EXECUTOR_MODULE = "tokenmux.executor.executor_main"


class ExecutorProcess:
    """A running executor: `tokenmux.node.executor_port.ExecutorPort`. It loads its libraries, and waits until
    it is given a device. `ended` becomes readable when the process has ended; `close` it then."""

    def __init__(self, *, n_devices: int, module: str = EXECUTOR_MODULE) -> None:
        """`n_devices` share the cores of this machine. Raises OSError if no process can be started."""
        self.index: InstanceId | None = None
        """The device that it was given, if any."""
        self.fault = ""
        """Why it was ended, if it did something wrong."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs, n_devices, module)
            self.ended = _end_of(self._process)
        except BaseException:
            ours.close()
            raise
        self.frames = PatientSocket(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, index: InstanceId, device: DeviceSetup, host_kv: int, host_kv_bytes: int) -> None:
        """Give it a device to serve, once. `host_kv` is the descriptor of the memory for paged-out KV."""
        self.index = index
        self._send(EXECUTOR_SETUP.encode(ExecutorSetup(index, device, host_kv_bytes)), [host_kv])

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        self._send(INSTRUCTIONS.encode(instructions), descriptors)

    def flush(self) -> None:
        """Send what waits for the executor to read."""
        if self.frames.n_unsent_bytes:
            try:
                self.frames.flush()
            except OSError:
                self.kill()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def close(self) -> str:
        """Free what is left of an ended process. Returns how it ended."""
        status = self._process.wait()
        self.frames.close()
        os.close(self.ended)
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return self.fault or f"its executor ended {how}"

    def _send(self, frame: bytes, descriptors: Sequence[int]) -> None:
        try:
            self.frames.send(frame, descriptors)
        except OSError:  # it is dead, or dying; `ended` says so
            self.kill()


def _start(end: socket.socket, n_devices: int, module: str) -> "subprocess.Popen[bytes]":
    descriptor = end.fileno()
    command = [sys.executable, "-P", "-m", module, str(descriptor), str(os.getpid())]
    environment = executor_environment(os.environ, n_devices=n_devices)
    return subprocess.Popen(command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, env=environment)


def _end_of(process: "subprocess.Popen[bytes]") -> int:
    """A descriptor that becomes readable when the process has ended. Raises OSError, and ends the process, if
    there are no more descriptors."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
