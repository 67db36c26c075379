"""A signature beside a detector: who made it, which its hashes alone do not say. Ed25519 over the card (RFC 8032).

The card holds the digest of every file of the folder, so a signature of the card is one of all of them.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from advconn.bundle.card_schema import CARD, LARGEST_CARD
from advconn.errors import BundleError, DataError
from advconn.files import atomic_file

SIGNATURE = "card.sig"
PURPOSE = b"advconn detector card, Ed25519\n"  # a signature of anything else is none of a card
LARGEST_KEY = 2**14
LARGEST_SIGNATURE = 200
EXTRA = "pip install cryptography, or advconn with the extra 'sign'"


def sign(folder: Path | str, key: Path | str) -> Path:
    """Sign a detector's card, and write the signature into its folder.

    Args:
        folder: as `save` wrote it.
        key: file of an Ed25519 private key in PEM, without a password.

    Raises:
        DataError: no such key.
        BundleError: no card.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _key(key, lambda text: load_pem_private_key(text, None), Ed25519PrivateKey, "private")
    path = Path(folder) / SIGNATURE
    signature = base64.b64encode(private.sign(_signed(Path(folder))))
    with atomic_file(path) as partial:
        partial.write_bytes(signature + b"\n")
    return path


def verify(folder: Path | str, key: Path | str) -> None:
    """Raise where a detector's card was not signed with the private key that belongs to this one.

    Args:
        folder: as `save` wrote it.
        key: file of an Ed25519 public key in PEM.

    Raises:
        DataError: no such key.
        BundleError: no signature, or one by another key or of another card.
    """
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _key(key, load_pem_public_key, Ed25519PublicKey, "public")
    try:
        with (Path(folder) / SIGNATURE).open("rb") as file:
            text = file.read(LARGEST_SIGNATURE)
    except OSError:
        raise BundleError(
            f"{folder}: is not signed ({SIGNATURE} is missing): advconn card DETECTOR --sign KEY signs it"
        ) from None
    try:
        public.verify(base64.b64decode(text.strip(), validate=True), _signed(Path(folder)))
    except (InvalidSignature, binascii.Error):
        raise BundleError(f"{folder}: its signature is not by {key}, or its card was changed since") from None


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise DataError(f"signatures need the package cryptography: {EXTRA}") from None


def _signed(folder: Path) -> bytes:
    try:
        with (folder / CARD).open("rb") as file:
            return PURPOSE + file.read(LARGEST_CARD + 1)
    except OSError as error:
        raise BundleError(f"{folder}: no detector here ({CARD}: {error.strerror})") from None


def _key(path: Path | str, read: Any, kind: type, name: str) -> Any:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_KEY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = read(content)
    except Exception as error:  # what a damaged or encrypted file makes cryptography raise
        raise DataError(f"{path}: not a {name} key in PEM without a password") from error
    if not isinstance(found, kind):
        raise DataError(f"{path}: expected an Ed25519 {name} key (openssl genpkey -algorithm ed25519)")
    return found
