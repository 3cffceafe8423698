"""Calls that go on as they are, without a look at anything but their numbers."""

import contextlib

from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.listener import Gone, Listener, Notification
from flagshim.seccomp import listened_calls
from flagshim.syscalls import X32_BIT, Kind


def kind_of_call(call: Notification) -> Kind | None:
    """Return what a call is; None for one that nobody asked to be told of."""
    return listened_calls().get((call.audit_arch, call.number & ~X32_BIT))


def leave_unseen(call: Notification, listener: Listener, lanes: Lanes) -> None:
    """Have a call go on, and suppose that it changes what it may change.

    Else files would be opened by groups that a thread has given up meanwhile, or for a program
    that has confined itself.
    """
    if listener.is_waiting(call.id):
        kind = kind_of_call(call)
        if kind is Kind.GROUPS:
            lanes.change_someones_groups()
        elif kind is Kind.LANDLOCK:
            lanes.confine_anybody()
    with contextlib.suppress(Gone):
        listener.let_go_on(call.id)
