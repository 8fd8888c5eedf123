"""Certificates: each leaf is its authority's, says who it is, and a rotation never leaves a moment without trust."""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from certs import Pki, identity


def verifies(leaf: Path, authorities: Path) -> bool:
    return subprocess.run(["openssl", "verify", "-CAfile", str(authorities), str(leaf)], capture_output=True, check=False).returncode == 0


@unittest.skipIf(shutil.which("openssl") is None, "no openssl")
class Certificates(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.pki = Pki(Path(self.directory.name), "default/sluice")
        self.e0, self.g0 = self.pki.issue("e0", "experts"), self.pki.issue("g0", "gateway")

    def text(self, path: Path) -> str:
        return subprocess.run(["openssl", "x509", "-in", str(path), "-noout", "-text"], capture_output=True, text=True, check=True).stdout

    def test_a_leaf_says_who_it_is(self):
        text = self.text(self.e0 / "tls.crt")
        self.assertIn("URI:spiffe://sluice/ns/default/moe/sluice/role/experts/worker/e0", text)
        self.assertIn("prime256v1", text)
        self.assertIn("CA:FALSE", text)
        self.assertIn("URI:spiffe://sluice/ns/default/moe/sluice/role/gateway\n", self.text(self.g0 / "tls.crt"))
        self.assertEqual(identity("x/y", "attention", "a3"), "spiffe://sluice/ns/x/moe/y/role/attention/worker/a3")

    def test_the_key_is_the_certificates(self):
        def public(*command: str) -> bytes:
            return subprocess.run(["openssl", *command], capture_output=True, check=True).stdout
        for _ in range(2):
            self.assertEqual(public("x509", "-in", str(self.e0 / "tls.crt"), "-noout", "-pubkey"),
                             public("pkey", "-in", str(self.e0 / "tls.key"), "-pubout"))
            self.pki.rotate_leaves()

    def test_others_are_not_trusted(self):
        other = Pki(Path(self.directory.name) / "other", "default/sluice").issue("e0", "experts")
        self.assertTrue(verifies(self.e0 / "tls.crt", self.g0 / "ca.crt"))
        self.assertFalse(verifies(other / "tls.crt", self.g0 / "ca.crt"))

    def test_a_new_authority_with_overlap(self):
        old = (self.e0 / "tls.crt").read_bytes()
        self.pki.add_authority()
        self.assertEqual((self.e0 / "tls.crt").read_bytes(), old)
        self.assertTrue(verifies(self.e0 / "tls.crt", self.g0 / "ca.crt"))
        self.pki.rotate_leaves()
        self.assertNotEqual((self.e0 / "tls.crt").read_bytes(), old)
        self.assertTrue(verifies(self.e0 / "tls.crt", self.g0 / "ca.crt"))
        self.pki.drop_old_authorities()
        self.assertTrue(verifies(self.e0 / "tls.crt", self.g0 / "ca.crt"))
        self.assertEqual((self.g0 / "ca.crt").read_text().count("BEGIN CERTIFICATE"), 1)
        (self.e0 / "old.crt").write_bytes(old)
        self.assertFalse(verifies(self.e0 / "old.crt", self.g0 / "ca.crt"))
