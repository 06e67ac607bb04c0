"""How the workers of one attempt find each other, and nobody from an earlier one."""

import secrets
import time
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(minutes=30)  # a worker may still be importing, or its machine starting


def meet() -> tuple[Store, int, int]:
    """The workers' common store, under a prefix that only this attempt uses; rank; size.

    torchrun keeps one store for all attempts (torch 2.13), and a worker that starts anew may read
    there the address of one that is dead, and wait for it. So everyone but the first says hello
    with a fresh token, and answers only a welcome to this very token; the first one welcomes
    whoever it hears, the dead too, until all others have answered.
    """
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    token = secrets.token_hex(8)
    if rank:
        store.set(f"hello/{rank}", token)
        store.wait([f"welcome/{token}"], PATIENCE)
        attempt = store.get(f"welcome/{token}").decode()
        store.set(f"answer/{attempt}/{rank}", "")
        return PrefixStore(attempt, store), rank, size
    silent = set(range(1, size))
    while silent:
        for other in sorted(silent):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", token)
            if store.check([f"answer/{token}/{other}"]):
                silent.remove(other)
        time.sleep(0.01)
    return PrefixStore(token, store), rank, size
