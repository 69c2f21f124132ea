# SPDX-License-Identifier: GPL-2.0-only
"""Unplugging and plugging devices, as a guest asks for it.

A guest writes a line into the port "host": "device_del ID" or "device_add ID",
where ID is one of the devices that lab plugged in. QEMU does it, asked by its
machine protocol (QMP). Lab answers one line: "ok" when it is done, or "error"
and why.

QEMU presses the slot's attention button, which is an orderly removal: the guest
waits five seconds, takes the driver off the device, and then lets it go. QEMU
has no surprise removal below a PCIe port.
"""

import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

# Seconds that a guest has to let a device go; it may have work to end first.
UNPLUG_DEADLINE = 90


class Refused(Exception):
    """What was asked for is not done; the text is for the guest."""


class Qmp:
    """A client of QEMU's machine protocol."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.greeted = False
        self.deleted: set[str] = set()  # devices that went since they were last asked for

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message, an answer or an event; TimeoutError when there is none in time."""
        while b"\n" not in self.received:
            self.connection.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.connection.recv(1 << 16)
            if not data:
                raise EOFError
            self.received += data
        line, _, self.received = self.received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "DEVICE_DELETED":
            self.deleted.add(message["data"].get("device", ""))
        return message

    def execute(self, command: str, **arguments: str) -> None:
        """Run a command."""
        deadline = time.monotonic() + 30
        if not self.greeted:
            self.greeted = "QMP" in self.receive(deadline)
            self.execute("qmp_capabilities")
        request = {"execute": command, "arguments": arguments}
        self.connection.settimeout(30)
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        while "return" not in (message := self.receive(deadline)):
            if "error" in message:
                raise Refused(message["error"]["desc"])

    def delete(self, device: str) -> None:
        """Unplug a device, and wait until the guest has let it go."""
        self.deleted.discard(device)
        self.execute("device_del", id=device)
        deadline = time.monotonic() + UNPLUG_DEADLINE
        while device not in self.deleted:
            message = self.receive(deadline)
            if message.get("event") == "DEVICE_UNPLUG_GUEST_ERROR":
                raise Refused("the guest keeps it")


class Host:
    """Serves the port "host" in a thread, from start() to stop()."""

    def __init__(self, device_arguments: Sequence[str]) -> None:
        # What lab plugged in, by id: the properties to plug it in again.
        self.devices: dict[str, dict[str, str]] = {}
        for argument in device_arguments:
            driver, *properties = argument.split(",")
            named = dict(one.split("=", 1) for one in properties)
            if "bus" in named and "id" in named:
                self.devices[named["id"]] = {"driver": driver, **named}
        self.guest, guest = socket.socketpair()
        connection, qmp = socket.socketpair()
        self.qmp = Qmp(connection)
        self.theirs = [guest, qmp]
        self.passed = [one.fileno() for one in self.theirs]
        self.arguments = [
            "-chardev", f"socket,id=host,fd={guest.fileno()}",
            "-device", "virtserialport,chardev=host,name=host",
            "-chardev", f"socket,id=qmp,fd={qmp.fileno()}",
            "-mon", "chardev=qmp,mode=control"]
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def start(self) -> None:
        """To be called when QEMU has its ends of the sockets."""
        for one in self.theirs:
            one.close()
        self.thread.start()

    def stop(self) -> None:
        """To be called when QEMU has ended."""
        self.thread.join(5)
        self.guest.close()
        self.qmp.connection.close()

    def answer(self, line: str) -> str:
        """Do what a line asks for."""
        verb, _, device = line.strip().partition(" ")
        if verb not in ("device_del", "device_add"):
            return f"error unknown verb: {verb}"
        if device not in self.devices:
            return f"error unknown device: {device}; there are {' '.join(self.devices)}"
        try:
            if verb == "device_add":
                self.qmp.execute(verb, **self.devices[device])
            else:
                self.qmp.delete(device)
        except Refused as refused:
            return f"error {refused}"
        except TimeoutError:
            return f"error no answer to {verb} in time"
        return "ok"

    def serve(self) -> None:
        """Answer line by line, until QEMU ends."""
        try:
            with self.guest.makefile("r", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    self.guest.sendall(self.answer(line).encode() + b"\n")
        except (OSError, EOFError, ValueError):
            pass  # QEMU has ended
