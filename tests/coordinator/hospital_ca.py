"""A hospital's CA and what it issues, made by the `openssl` command as its people would."""

import subprocess
from pathlib import Path

_KEYS = {
    "rsa": ("RSA", "rsa_keygen_bits:2048"), "rsa1024": ("RSA", "rsa_keygen_bits:1024"),
    "ec": ("EC", "ec_paramgen_curve:P-256"), "secp256k1": ("EC", "ec_paramgen_curve:secp256k1"),
}  # fmt: skip
_CA = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
_SERVER = "basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
_AUTHORITY = "authorityKeyIdentifier=keyid\n"


class HospitalCa:
    """Certificates in one folder, named by whom they are of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def authority(self, name: str, *, by: str | None = None, key: str = "ec", extensions: str = _CA) -> Path:
        """Makes a CA: a root, or one below another."""
        return self.issue(name, by=by, key=key, extensions=extensions if by is None else extensions + _AUTHORITY)

    def server(
        self, name: str, *, by: str, key: str = "ec", host: str = "IP:127.0.0.1", use: str = "serverAuth",
        days: tuple[str, str] | None = None,
    ) -> Path:  # fmt: skip
        """Makes a server's certificate; `days` are its first and last, as 20200101000000Z."""
        names = f"subjectAltName={host}\n" if host else ""
        uses = f"extendedKeyUsage={use}\n" if use else ""
        return self.issue(name, by=by, key=key, extensions=_SERVER + names + uses, days=days)

    def issue(
        self, name: str, *, by: str | None, key: str, extensions: str, days: tuple[str, str] | None = None
    ) -> Path:
        """Makes a key and a certificate; returns the certificate's path."""
        algorithm, option = _KEYS[key]
        self._run("genpkey", "-algorithm", algorithm, "-pkeyopt", option, "-out", self.key(name))
        self.key(name).chmod(0o600)
        subject = ("-new", "-key", self.key(name), "-subj", f"/O=Hospital/CN={name}", "-out", self.folder / "request")
        self._run("req", *subject)
        config = self.folder / "openssl.cnf"
        (self.folder / "index.txt").write_text("")
        config.write_text(
            f"[ca]\ndefault_ca=made\n[made]\ndir={self.folder}\ndatabase={self.folder}/index.txt\nnew_certs_dir={self.folder}\n"
            "default_md=sha256\npolicy=any\nrand_serial=yes\nunique_subject=no\n"
            f"[any]\norganizationName=supplied\ncommonName=supplied\n[extensions]\n{extensions}"
        )
        first, last = days or ("20240101000000Z", "20491231000000Z")
        made = self.folder / f"{name}.pem"
        signer = name if by is None else by
        own = ("-selfsign",) if by is None else ("-cert", self.folder / f"{by}.pem")
        self._run(
            "ca", "-batch", "-notext", "-config", config, "-extensions", "extensions", "-in", self.folder / "request",
            "-keyfile", self.key(signer), *own, "-startdate", first, "-enddate", last, "-out", made,
        )  # fmt: skip
        return made

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def chain(self, *names: str) -> Path:
        """Puts certificates into one file, the first first."""
        path = self.folder / f"{'+'.join(names)}.chain.pem"
        path.write_text("".join((self.folder / f"{name}.pem").read_text() for name in names))
        return path

    @staticmethod
    def _run(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
