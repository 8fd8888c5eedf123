"""Links as they are cut, parted, broken and slowed, on real namespaces. Skipped where there can be none."""

import os
import socket
import threading
import unittest

import machine
from hosts import SWITCH, Lab, port
from links import PEER_PORT, Links

SOON, LONG = 0.4, 30.0


def able() -> str:
    try:
        lacks = machine.check()
    except machine.Unable as error:
        return str(error)
    return "; ".join(lacks)


WHY_NOT = able()


def there(namespace: str, make):
    """What `make` makes inside a namespace. Sockets stay where they were made."""
    made = []

    def work():
        machine.enter(namespace)
        made.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Cables(unittest.TestCase):
    def setUp(self):
        self.home = open("/proc/self/ns/net")
        self.addCleanup(self.home.close)
        self.lab = Lab(f"test{os.getpid()}")
        self.addCleanup(self.lab.clean)
        self.addCleanup(lambda: machine.join(self.home.fileno()))
        self.lab.make(["x", "y", "z"])
        self.links = Links(self.lab)
        for host in ("y", "z"):
            server = there(self.lab.namespace(host), lambda: socket.create_server(("0.0.0.0", PEER_PORT)))
            self.addCleanup(server.close)
            # Closing alone does not wake the thread that waits for clients.
            self.addCleanup(server.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=self.echo, args=(server,), daemon=True).start()

    def echo(self, server: socket.socket) -> None:
        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(4096):
                        connection.sendall(data)
                except OSError:
                    pass

        try:
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
        except OSError:
            pass

    def dial(self, host: str, timeout: float = LONG) -> socket.socket:
        def make():
            try:
                return socket.create_connection((self.lab.address(host), PEER_PORT), timeout)
            except OSError as error:
                return error

        made = there(self.lab.namespace("x"), make)
        if isinstance(made, OSError):
            raise made
        self.addCleanup(made.close)
        return made

    def asked(self, connection: socket.socket, timeout: float = LONG) -> bytes:
        connection.settimeout(timeout)
        connection.sendall(b"!")
        return connection.recv(1)

    def silent(self, host: str, connection: socket.socket) -> None:
        """Nothing comes, and nothing says so: neither on a connection that stands nor when one is made."""
        with self.assertRaises(TimeoutError):
            self.asked(connection, SOON)
        with self.assertRaises(TimeoutError):
            self.dial(host, SOON)

    def test_a_cut_is_silent_and_heals(self):
        connection, other = self.dial("y"), self.dial("z")
        self.links.cut("y")
        self.silent("y", connection)
        self.assertEqual(self.asked(other), b"!")
        self.links.heal("y")
        self.assertEqual(self.asked(connection), b"!")

    def test_cuts_that_overlap(self):
        connection = self.dial("y")
        self.links.cut("y")
        self.links.cut("y")
        self.links.heal("y")
        self.silent("y", connection)
        self.links.heal("y")
        self.assertEqual(self.asked(connection), b"!")

    def test_a_partition_parts_two_and_no_others(self):
        connection, other = self.dial("y"), self.dial("z")
        self.links.part(["x"], ["y"])
        self.silent("y", connection)
        self.assertEqual(self.asked(other), b"!")
        with socket.create_connection((self.lab.address("y"), PEER_PORT), LONG) as ours:
            self.assertEqual(self.asked(ours), b"!")
        self.links.join(["x"], ["y"])
        self.assertEqual(self.asked(connection), b"!")

    def test_a_break_resets_and_may_be_dialled_anew(self):
        connection, other = self.dial("y"), self.dial("z")
        self.links.break_connections("y")
        with self.assertRaises(ConnectionError):
            self.asked(connection)
        self.assertEqual(self.asked(other), b"!")
        self.assertEqual(self.asked(self.dial("y")), b"!")

    def test_a_limit_is_there_both_ways_and_goes(self):
        def shapes() -> list[bool]:
            here = machine.run("tc", "-n", self.lab.namespace("y"), "qdisc", "show", "dev", "eth0")
            there_ = machine.run("tc", "-n", self.lab.namespace(SWITCH), "qdisc", "show", "dev", port("y"))
            return ["tbf" in text and "rate 1Mbit" in text for text in (here, there_)]

        self.links.limit("y", "1mbit")
        self.assertEqual(shapes(), [True, True])
        self.assertEqual(self.asked(self.dial("y")), b"!")
        self.links.unlimit("y")
        self.assertEqual(shapes(), [False, False])

    def test_processes_end_with_their_host_even_when_stopped(self):
        process = self.lab.exec("y", ["sleep", "1000"])
        os.kill(process.pid, 19)
        self.assertEqual(self.lab.clean(), 4)
        self.assertEqual(process.wait(LONG), -9)
