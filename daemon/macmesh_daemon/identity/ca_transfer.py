"""The CA key on its way to another node, encrypted with a passphrase.

Format of the file (``"format": "macmesh-ca/1"``): the CA certificate in the clear, and its key encrypted with
AES-256-GCM under a key that scrypt makes of the passphrase (n 2^17, r 8, p 1: 128 MiB, a good part of a second).
The certificate is authenticated along with the key.
"""

import base64
import json
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from macmesh_daemon.identity.certificates import ClusterCredentials, cluster_hash_of, load_ca
from macmesh_daemon.identity.errors import LocalCredentialsError

FORMAT = "macmesh-ca/1"
SHORTEST_PASSPHRASE = 12
_SCRYPT_N = 1 << 17
_SALT_BYTES = 16
_NONCE_BYTES = 12


def export_ca(ca: ClusterCredentials, passphrase: str) -> bytes:
    """The CA as a file that only the passphrase opens. Blocks for about half a second.

    Raises:
        LocalCredentialsError: The passphrase is too short, or the CA is broken.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise LocalCredentialsError(
            f"the passphrase has fewer than {SHORTEST_PASSPHRASE} characters: the file holds the key to the cluster"
        )
    load_ca(ca)
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, ca.ca_key_pem, ca.ca_pem)
    value = {
        "format": FORMAT,
        "ca_pem": ca.ca_pem.decode("ascii"),
        "salt": base64.b64encode(salt).decode("ascii"),
        "nonce": base64.b64encode(nonce).decode("ascii"),
        "sealed_key": base64.b64encode(sealed).decode("ascii"),
    }
    return f"{json.dumps(value, indent=1)}\n".encode()


def open_exported_ca(content: bytes, passphrase: str) -> ClusterCredentials:
    """Open what `export_ca` made. Blocks for about half a second.

    Raises:
        LocalCredentialsError: It is no such file, or the passphrase is wrong.
    """
    try:
        value: Any = json.loads(content)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise LocalCredentialsError(f'the file does not say "format": "{FORMAT}"')
        ca_pem = str(value["ca_pem"]).encode("ascii")
        salt, nonce, sealed = (
            base64.b64decode(str(value[name]), validate=True) for name in ("salt", "nonce", "sealed_key")
        )
        key_pem = AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, ca_pem)
    except InvalidTag:
        raise LocalCredentialsError(
            "the passphrase is wrong, or the file was changed since it was exported"
        ) from None
    except (ValueError, KeyError) as error:
        raise LocalCredentialsError(f"the file is damaged: {error!r}") from error
    ca = ClusterCredentials(ca_pem=ca_pem, ca_key_pem=key_pem, cluster_hash=cluster_hash_of(ca_pem))
    load_ca(ca)
    return ca


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase.encode())
