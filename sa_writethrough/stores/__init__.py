"""Where entries live: the `Store` protocol, and the stores that URLs name."""

from sa_writethrough.stores.base import Reply, Store
from sa_writethrough.stores.urls import open_async_store, open_store

__all__ = ["Reply", "Store", "open_async_store", "open_store"]
