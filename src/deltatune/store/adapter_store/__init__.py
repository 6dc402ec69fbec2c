"""The adapter store: thousands of adapters by name, in a folder or behind a URL, with an index to search them."""

from deltatune.store.adapter_store.adapter_store import AdapterStore
from deltatune.store.adapter_store.store_entry import Entry

__all__ = ["AdapterStore", "Entry"]
