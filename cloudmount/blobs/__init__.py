"""Bytes at rest: the store contract, its stores and the wrappers around them."""
