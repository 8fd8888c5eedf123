"""Certificates: an authority, and a leaf per process, made with the `openssl` command and kept as Kubernetes keeps a Secret.

A directory holds `tls.crt`, `tls.key` and `ca.crt`, each a link into `..data`, which is a link to a directory of this
generation: renaming that one link changes all three files at once.
"""

import os
import shutil
from pathlib import Path

from machine import run

DAYS = "30"
AUTHORITY = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
LEAF = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    "authorityKeyIdentifier=keyid\nsubjectAltName=URI:{uri}\n"
)


def identity(deployment: str, role: str, worker: str) -> str:
    """The URI of a leaf. Gateways have no names of their own, nor has the operator."""
    namespace, name = deployment.split("/")
    base = f"spiffe://sluice/ns/{namespace}/moe/{name}/role/{role}"
    return base if role in ("gateway", "operator") else f"{base}/worker/{worker}"


class Authority:
    """One CA; its key never leaves `directory`."""

    def __init__(self, directory: Path, name: str):
        self.directory, self.serial = directory, 0
        directory.mkdir(parents=True)
        self.certificate, self.key = directory / "ca.crt", directory / "ca.key"
        _key(self.key)
        extensions = directory / "ca.ext"
        extensions.write_text(AUTHORITY)
        request = directory / "ca.csr"
        run("openssl", "req", "-new", "-key", str(self.key), "-subj", f"/CN={name}", "-out", str(request))
        run("openssl", "x509", "-req", "-in", str(request), "-signkey", str(self.key), "-days", DAYS, "-extfile", str(extensions),
            "-out", str(self.certificate))

    def leaf(self, uri: str) -> tuple[bytes, bytes]:
        """A fresh key and its certificate, as PEM: (certificate, key)."""
        self.serial += 1
        stem = self.directory / f"leaf{self.serial}"
        key, request, extensions, certificate = (stem.with_suffix(s) for s in (".key", ".csr", ".ext", ".crt"))
        _key(key)
        extensions.write_text(LEAF.format(uri=uri))
        run("openssl", "req", "-new", "-key", str(key), "-subj", "/", "-out", str(request))
        run("openssl", "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key), "-set_serial",
            str(self.serial), "-days", DAYS, "-extfile", str(extensions), "-out", str(certificate))
        pair = certificate.read_bytes(), key.read_bytes()
        for file in (key, request, extensions, certificate):
            file.unlink()
        return pair

    def pem(self) -> bytes:
        return self.certificate.read_bytes()


def _key(path: Path) -> None:
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path))
    path.chmod(0o600)


class Secret:
    """The directory that one process reads."""

    def __init__(self, directory: Path):
        self.directory, self.generation = directory, 0
        directory.mkdir(parents=True)

    def write(self, certificate: bytes, key: bytes, authorities: list[bytes]) -> None:
        """All three files change at one moment."""
        self.generation += 1
        data = self.directory / f"..{self.generation}"
        data.mkdir()
        for name, content in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", b"".join(authorities))):
            (data / name).write_bytes(content)
            (data / name).chmod(0o600)
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        fresh = self.directory / "..fresh"
        fresh.symlink_to(data.name)
        os.replace(fresh, self.directory / "..data")
        old = self.directory / f"..{self.generation - 1}"
        if old.exists():
            shutil.rmtree(old)

    def read(self) -> tuple[bytes, bytes, bytes]:
        return tuple((self.directory / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt"))


class Pki:
    """The certificates of a deployment, and their rotation."""

    def __init__(self, directory: Path, deployment: str):
        self.directory, self.deployment, self.count = directory, deployment, 0
        self.authority = self._authority()
        self.secrets: dict[str, tuple[Secret, str]] = {}

    def _authority(self) -> Authority:
        self.count += 1
        return Authority(self.directory / f"ca{self.count}", f"sluice bed {self.count}")

    def issue(self, worker: str, role: str) -> Path:
        uri = identity(self.deployment, role, worker)
        secret = Secret(self.directory / worker)
        secret.write(*self.authority.leaf(uri), [self.authority.pem()])
        self.secrets[worker] = (secret, uri)
        return secret.directory

    @property
    def operator(self) -> Path:
        """The certificate of who may push tables, issued with the others."""
        return self.secrets["operator"][0].directory

    def rotate_leaves(self) -> None:
        for secret, uri in self.secrets.values():
            secret.write(*self.authority.leaf(uri), [secret.read()[2]])

    def add_authority(self) -> None:
        """First step of a change of CA: all trust both, all still show leaves of the old one."""
        self.authority = self._authority()
        for secret, _ in self.secrets.values():
            certificate, key, trusted = secret.read()
            secret.write(certificate, key, [trusted, self.authority.pem()])

    def drop_old_authorities(self) -> None:
        """Last step, when all show leaves of the new CA."""
        for secret, _ in self.secrets.values():
            certificate, key, _ = secret.read()
            secret.write(certificate, key, [self.authority.pem()])
