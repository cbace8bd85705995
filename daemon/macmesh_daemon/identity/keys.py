"""Node keys and the node id that follows from them."""

import base64
import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from macmesh_daemon.identity.errors import LocalCredentialsError

NODE_ID_BYTES = 16
NODE_ID_LENGTH = 26  # base32 of 16 bytes without padding
_NODE_ID_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def node_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return the id of the node that holds the key's private half.

    It is the first 128 bits of the SHA-256 of the DER SubjectPublicKeyInfo, as 26 lower-case base32
    characters.
    """
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b32encode(hashlib.sha256(der).digest()[:NODE_ID_BYTES]).decode("ascii").rstrip("=").lower()


def is_node_id(text: str) -> bool:
    """Say whether ``text`` has the form of a node id. It says nothing about whether such a node exists."""
    return len(text) == NODE_ID_LENGTH and _NODE_ID_ALPHABET.issuperset(text)


def private_key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a key as unencrypted PKCS#8 PEM; the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key_from_pem(pem: bytes, *, where: str) -> ec.EllipticCurvePrivateKey:
    """Decode a P-256 key; ``where`` names its file in errors.

    Raises:
        LocalCredentialsError: It is no P-256 private key in PEM.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LocalCredentialsError(f"{where} holds no readable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise LocalCredentialsError(f"{where} holds a key that is not P-256")
    return key
