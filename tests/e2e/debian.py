"""The Debian package, and a signed repository that has it, served on a lab's network."""

import hashlib
import os
import shutil

import packages
from machine import HERE, run

TREE = os.path.dirname(os.path.dirname(HERE))
KEY_BEGIN, KEY_END = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"


def must(command, **more):
    done = run(command, **more)
    if done.code != 0:
        raise OSError(f"{' '.join(command[:4])}: {done}")
    return done.out


def package(larder):
    """The path of this tree's package, of this very binary."""
    return os.path.join(packages.build(larder), packages.deb(packages.version()))


class Repository:
    """http://10.0.20.1/larder, for apt, and http://10.0.20.1/larder.deb. `key` is what its packages are signed with."""

    def __init__(self, lab):
        folder = os.path.join(lab.directory, "www")
        flat = os.path.join(folder, "larder")
        os.makedirs(flat)
        self.deb = package(lab.larder)
        shutil.copy(self.deb, flat)
        shutil.copy(self.deb, os.path.join(folder, "larder.deb"))
        with open(self.deb, "rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        home = os.path.join(lab.directory, "gnupg")
        os.makedirs(home, mode=0o700)
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
        must([*gpg, "--passphrase", "", "--quick-gen-key", "Larder's tests", "ed25519", "sign", "1d"])
        self.key = must([*gpg, "--armor", "--export"])
        index = 'cd "$1"; apt-ftparchive packages . > Packages; apt-ftparchive release . > ../Release; mv ../Release .'
        must(["sh", "-ec", index, "_", flat])
        must([*gpg, "--clearsign", "--output", f"{flat}/InRelease", f"{flat}/Release"])
        run(["gpgconf", "--homedir", home, "--kill", "all"])
        self.server = lab.upstream.daemon("gw", "python3", "-m", "http.server", "80", "--bind", "10.0.20.1", "--directory", folder)
        lab.upstream._listening(80)
