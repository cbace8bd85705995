"""Certificate requests: how a key's holder asks for a certificate and proves that it holds the key."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from macmesh_daemon.identity.errors import RemoteUntrustedError
from macmesh_daemon.identity.keys import node_id_of, private_key_from_pem

#: A P-256 request takes about 250 bytes.
MAX_REQUEST_BYTES = 2048


def make_certificate_request(key_pem: bytes) -> bytes:
    """A PKCS#10 request (DER) for a key, signed by it.

    Raises:
        LocalCredentialsError: ``key_pem`` is no P-256 key.
    """
    key = private_key_from_pem(key_pem, where="the private key")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id_of(key.public_key()))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def key_of_request(request_der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose holder proved to have the private one.

    Everything else in the request is ignored: a certificate says only what the issuer puts into it.

    Raises:
        RemoteUntrustedError: It is no such request.
    """
    if len(request_der) > MAX_REQUEST_BYTES:
        raise RemoteUntrustedError(f"the certificate request takes more than {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        proved = request.is_signature_valid
    except Exception as error:  # the parser raises many kinds for hostile input
        raise RemoteUntrustedError(
            f"the certificate request cannot be read: {type(error).__name__}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RemoteUntrustedError("the certificate request's key is not P-256")
    if not proved:
        raise RemoteUntrustedError("the certificate request is not signed by its own key")
    return key
