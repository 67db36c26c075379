"""Who made a detector."""

import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner

from advconn import bundle
from advconn.bundle import card_schema
from advconn.bundle.signature import sign, verify
from advconn.cli import main
from advconn.errors import AdvconnWarning, BundleError, DataError
from advconn.models.classifier import Classifier
from advconn.serving import Judge

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def write_keys(folder, name, kind=Ed25519PrivateKey):
    """Files of a private and of its public key."""
    private = kind.generate()
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return paths


@pytest.fixture
def mine(tmp_path):
    shutil.copytree(bundle.default("digits"), tmp_path / "d")
    return tmp_path / "d"


def test_a_signed_detector_loads_and_another_does_not(mine, tmp_path):
    private, public = write_keys(tmp_path, "ours")
    _, other = write_keys(tmp_path, "theirs")
    with pytest.raises(BundleError, match="is not signed"):
        bundle.load(mine, verify_key=public)
    sign(mine, private)
    assert bundle.load(mine, verify_key=public).classifier.num_classes == 10
    assert bundle.load(mine).classifier.num_classes == 10
    with pytest.raises(BundleError, match="its signature is not by"):
        bundle.load(mine, verify_key=other)
    card = json.loads((mine / "card.json").read_text())  # changed, and made to fit its own digest again
    card["figures"]["by"] = "somebody else"
    card["card"] = card_schema.digest(card)
    (mine / "card.json").write_text(json.dumps(card))
    assert bundle.load(mine).figures_["by"] == "somebody else"
    with pytest.raises(BundleError, match="was changed since"):
        bundle.load(mine, verify_key=public)
    (mine / "card.sig").write_text("no base64!")
    with pytest.raises(BundleError, match="its signature is not by"):
        verify(mine, public)


def test_a_signed_detector_is_read_from_a_copy_of_its_own(mine, tmp_path):
    """Of the files that its card lists alone; what is said of it names its own folder, and the caller's line."""
    private, public = write_keys(tmp_path, "ours")
    sign(mine, private)
    with (mine / "more.bin").open("wb") as more:
        more.truncate(2**40)  # a sparse file that no disk could hold
    network = bundle.load(mine).classifier
    black_box = Classifier.from_callable(
        lambda x: network.logits(torch.as_tensor(x)), num_classes=10, size=8, channels=1
    )
    with pytest.warns(AdvconnWarning, match="gives no gradient") as told:
        bundle.load(mine, model=black_box, verify_key=public)
    assert str(told[0].message).startswith(f"{mine}: ")
    assert told[0].filename == __file__
    (mine / "head.skops").unlink()
    with pytest.raises(BundleError, match=rf"^{re.escape(str(mine))}: head.skops is missing"):
        bundle.load(mine, verify_key=public)
    with pytest.raises(BundleError, match="no such folder"):
        bundle.load(tmp_path / "nowhere", verify_key=public)
    with pytest.raises(DataError, match="loaded already"):
        Judge(bundle.load(bundle.default("digits")), verify_key=public)


def test_other_keys_are_refused(mine, tmp_path):
    private, public = write_keys(tmp_path, "ours")
    other, _ = write_keys(tmp_path, "exchange", X25519PrivateKey)
    (tmp_path / "text").write_text("no key")
    for wrong, says in (
        (public, "not a private key"),
        (other, "expected an Ed25519"),
        (tmp_path / "text", "not a private"),
    ):
        with pytest.raises(DataError, match=says):
            sign(mine, wrong)
    with pytest.raises(DataError, match="cannot be read"):
        sign(mine, tmp_path / "none")
    with pytest.raises(DataError, match="not a public key"):
        verify(mine, private)
    assert not (mine / "card.sig").exists()


def test_the_commands(mine, tmp_path):
    """card --sign, then --verify-key wherever a detector is taken."""
    private, public = write_keys(tmp_path, "ours")
    line = ["score", "--detector", str(mine), "--verify-key", str(public), str(tmp_path / "none.png")]
    before = CliRunner().invoke(main, line)
    assert before.exit_code == 2
    assert "is not signed" in before.output
    signed = CliRunner().invoke(main, ["card", str(mine), "--sign", str(private)])
    assert signed.exit_code == 0, signed.output
    assert "no such file" in CliRunner().invoke(main, line).output  # past the signature


def test_a_signature_is_checked_before_anything_is_run(mine, tmp_path):
    """No factory, and no silence where there is no detector to check."""
    _, public = write_keys(tmp_path, "ours")
    (tmp_path / "mine.py").write_text("def build():\n    raise SystemExit('was run')\n")
    more = ["--model", f"{tmp_path}/mine.py:build", "--verify-key", str(public)]
    out = CliRunner().invoke(main, ["score", "--detector", str(mine), *more, "x.png"])
    assert out.exit_code == 2
    assert "is not signed" in out.output
    for line in (["score", "x.png"], ["fit", "--data", "x", "--out", str(tmp_path / "o")]):
        refused = CliRunner().invoke(main, [*line, *more])
        assert refused.exit_code == 2
        assert "name one" in refused.output
