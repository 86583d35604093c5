"""Who speaks at the gateway, and whether a request is that merchant's own to make.

A certificate leads to one merchant by the register of what was issued; a request passes only with the node key that
was issued to the same merchant. SuperLink then verifies that the key signed the request, and that the node it names is
the key's. Two things that SuperLink 1.41 lets any node do are stopped here: sending an order to another node, and
answering in another node's name.

The gateway can withhold messages and delay them; it vouches for none, which are sealed end to end.
"""

from __future__ import annotations

import base64
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError

from hansa_common.certificates import common_name
from hansa_common.errors import CertificateRevokedError, CertificateUnknownError, CoordinatorError
from hansa_common.fleet_api import HEALTH, NODE_KEY_HEADER, RefusedError
from hansa_common.http_heads import RequestHead
from hansa_server.issued_register import Issued, IssuedRegister, changed_at


class LiveRegister:
    """What the coordinator has issued and revoked, as it stands now. For many threads."""

    def __init__(self, state: Path) -> None:
        """Read the register in the coordinator's state folder.

        Raises:
            CoordinatorError: it is damaged.
        """
        self._state = state
        self._lock = threading.Lock()
        self._read_at = changed_at(state)
        self._register = IssuedRegister.read(state)

    def lookup(self, serial: int) -> Issued:
        """Whom the certificate with this serial number was issued to.

        Raises:
            RefusedError: nobody, or it was taken back; or the register is damaged, when nobody is let in.
        """
        with self._lock:
            try:
                self._renew()
                return self._register.lookup(serial)
            except CertificateUnknownError as error:
                raise RefusedError("certificate-unknown", str(error)) from error
            except CertificateRevokedError as error:
                raise RefusedError("certificate-revoked", str(error)) from error
            except CoordinatorError as error:
                raise RefusedError("unreachable", str(error)) from error

    def _renew(self) -> None:
        # Looked at before it is read: what changes meanwhile is read again.
        stands_at = changed_at(self._state)
        if stands_at != self._read_at:
            self._register = IssuedRegister.read(self._state)
            self._read_at = stands_at


@dataclass(frozen=True)
class Certificate:
    """What is read of a certificate once its chain is verified."""

    serial: int
    merchant: str
    ends: float

    @classmethod
    def of_peer(cls, connection: ssl.SSLSocket) -> Certificate:
        """The certificate that the peer has shown and proved to hold the key of.

        Raises:
            RefusedError: it does not say whose it is.
        """
        encoded = connection.getpeercert(binary_form=True)
        if encoded is None:
            raise RefusedError("certificate-unknown", "there is no certificate")
        certificate = x509.load_der_x509_certificate(encoded)
        try:
            merchant = common_name(certificate.subject)
        except ValueError as error:
            raise RefusedError("certificate-unknown", "the certificate does not name one merchant") from error
        return cls(certificate.serial_number, merchant, certificate.not_valid_after_utc.timestamp())


def check_certificate(certificate: Certificate, register: LiveRegister, now: float) -> Issued:
    """See whose certificate it is, and that it still is one.

    Raises:
        RefusedError: it is revoked, past its end, or not one that was issued to the merchant it names.
    """
    holder = register.lookup(certificate.serial)
    if holder.merchant != certificate.merchant:
        raise RefusedError("certificate-unknown", "the certificate names another merchant than it was issued to")
    if now > certificate.ends:
        raise RefusedError("certificate-expired", "the certificate has ended")
    return holder


def check_node_key(head: RequestHead, holder: Issued) -> None:
    """See that a request speaks with the node key that belongs to the certificate.

    Raises:
        RefusedError: it has another key, or none.
    """
    # Compared as text: nothing of the request is decoded here.
    issued = base64.b64encode(holder.node_key.encode()).decode()
    if head.target != HEALTH and head.headers.get(NODE_KEY_HEADER) != issued:
        raise RefusedError("other-node-key", "the request speaks with another node key than the certificate's")


def check_pushed_messages(body: bytes) -> None:
    """See that what a node pushes is one reply of its own; which node it is, SuperLink verifies.

    Raises:
        RefusedError: it is no such request, an order, or a reply in another node's name.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError as error:
        raise RefusedError("malformed", "the body is no list of messages") from error
    if len(request.messages_list) != 1:
        raise RefusedError("not-its-own-message", f"{len(request.messages_list)} messages at once")
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != request.node.node_id:
        raise RefusedError("not-its-own-message", "the message is in another node's name")
    if not metadata.reply_to_message_id:
        raise RefusedError("not-its-own-message", "the message answers none")
