"""Starts, commands and ends the other processes of a group that generates one video; this process leads the group."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import structlog
import torch

from infinitetalk.errors import CheckpointError, ParallelError
from infinitetalk.network.parallel import LOST, Group, follow, join, leave, lost_processes

if TYPE_CHECKING:
    from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel

TIMEOUT_S = 120.0
"""Longest time that a process may keep the others waiting: at the start, and within one evaluation."""

END_TIMEOUT_S = 5.0

READY = "ready"


@dataclass(frozen=True)
class Followed:
    """What a follower takes part in the work of.

    Attributes:
        transformer: its transformer.
        others: by the types of messages, how to answer those about other work.
    """

    transformer: InfiniteTalkTransformer3DModel
    others: Mapping[type, Callable[[Any], None]] = field(default_factory=dict)


#: Called once in each follower with its device. The function that it returns maps a command to the networks to use from
#: then on. `MakeLoader` and the commands must be picklable.
MakeLoader = Callable[[torch.device], Callable[[Any], Followed]]


class ProcessWatch:
    """Notices in a thread that a process of the group has ended.

    Args:
        processes: the processes.
        on_loss: is called once, in the thread, when one has ended.
    """

    def __init__(self, processes: Sequence[BaseProcess], on_loss: Callable[[], None]) -> None:
        self._processes, self._on_loss = processes, on_loss
        self._lost = threading.Event()
        self._closing, self._close = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="followers-watch", daemon=True)
        self._thread.start()

    def has_lost(self) -> bool:
        """Whether one has ended."""
        return self._lost.is_set()

    def close(self) -> None:
        """Watches no longer: the processes may now end."""
        self._close.close()
        self._thread.join()
        self._closing.close()

    def _run(self) -> None:
        if self._closing not in connection.wait([self._closing, *(process.sentinel for process in self._processes)]):
            self._lost.set()
            self._on_loss()


class Followers:
    """Processes that share evaluations with this one, each on its own device.

    Args:
        device: device of this process.
        devices: devices of the other processes.
        make_loader: makes the function that loads their transformer.

    Attributes:
        group: the group of all processes, including this one; None before `wait` has returned.
        connections: one to each follower.
    """

    def __init__(self, device: torch.device, devices: Sequence[torch.device], make_loader: MakeLoader) -> None:
        self._device, self._devices = device, devices
        self._make_loader = make_loader
        self._processes: list[BaseProcess] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._waiting = False
        self._watch: ProcessWatch | None = None
        self.connections: list[Connection] = []
        self.group: Group | None = None

    @property
    def are_there(self) -> bool:
        """Whether they have been started and are all running."""
        return bool(self._processes) and all(process.is_alive() for process in self._processes)

    def has_lost(self) -> bool:
        """Whether one of the group has ended."""
        return self._watch is not None and self._watch.has_lost()

    def start(self) -> None:
        """Starts them; they wait for a command."""
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="infinitetalk-group-")
        size = len(self._devices) + 1
        for rank, device in enumerate(self._devices, 1):
            ours, theirs = context.Pipe()
            arguments = (rank, size, self._address, device, self._make_loader, theirs)
            process = context.Process(
                target=follow_until_dismissed, args=arguments, name=f"follower-{rank}", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self.connections.append(ours)

    def command(self, what: object) -> None:
        """Makes each follower load the transformer for this command; returns at once.

        Raises:
            ParallelError: a follower has ended.
        """
        with lost_processes():
            for follower in self.connections:
                follower.send((what,))
        self._waiting = True

    def wait(self) -> Group:
        """The group, as soon as each follower has loaded the transformer of the last command.

        Raises:
            CheckpointError: a follower could not load it.
            ParallelError: a follower has ended.
        """
        if self._waiting:
            pairs = zip(self._processes, self.connections, strict=True)
            # Read all answers, so that none is taken for the answer to the next command.
            answers = [self._answer(process, follower) for process, follower in pairs]
            self._waiting = False
            for answer in answers:
                if answer != READY:
                    raise CheckpointError(answer)
        if self.group is None:
            self.group = join(0, len(self._devices) + 1, self._address, self._device, TIMEOUT_S)
            self._watch = ProcessWatch(self._processes, self.group.abort)
        return self.group

    def end(self) -> None:
        """Ends them, whatever they are doing; they can be started again.

        Raises:
            ParallelError: this process cannot leave the group, and will not get another one.
        """
        if self._watch is not None:
            self._watch.close()
        for follower in self.connections:
            # An idle follower exits when its pipe is closed; one that hangs in an evaluation is killed below.
            follower.close()
        for process in self._processes:
            process.join(END_TIMEOUT_S)
            process.kill()
            process.join()
        if self.group is not None:
            with lost_processes():
                if not self.has_lost():
                    # Nobody is left to end the group with.
                    self.group.abort()
                leave()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self.connections, self.group, self._folder = [], [], None, None
        self._waiting, self._watch = False, None

    @property
    def _address(self) -> str:
        assert self._folder is not None
        return f"file://{self._folder.name}/meeting"

    @staticmethod
    def _answer(process: BaseProcess, follower: Connection) -> str:
        connection.wait([follower, process.sentinel])
        if not follower.poll():
            raise ParallelError(LOST)
        with lost_processes():
            return str(follower.recv())


def follow_until_dismissed(
    rank: int, size: int, address: str, device: torch.device, make_loader: MakeLoader, leader: Connection
) -> None:
    """Main function of a follower: loads the networks that the leader commands and takes part in their work."""
    # Ctrl-C goes to every process of a terminal; only the leader reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device.type == "cuda":
        # First of all: what is made before, streams and pinned memory, would belong to the first GPU.
        torch.cuda.set_device(device)
    load = make_loader(device)
    group: Group | None = None
    try:
        with lost_processes():
            message = leader.recv()
        while True:
            (command,) = message
            try:
                followed = load(command)
            except CheckpointError as error:
                with lost_processes():
                    leader.send(str(error))
                    message = leader.recv()
                continue
            with lost_processes():
                leader.send(READY)
            if group is None:
                group = join(rank, size, address, device, TIMEOUT_S)
            message = follow(followed.transformer, group, leader, followed.others)
            # Two would not fit: the next command may be for weights in another form.
            del followed
    except ParallelError as error:
        if group is not None:
            group.abort()
        structlog.get_logger().info("follower.ended", details={"rank": rank, "reason": str(error.__cause__)})
        sys.exit(1)
