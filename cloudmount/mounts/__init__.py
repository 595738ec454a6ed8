"""Adapters that show a `Dir` as a mounted drive. They translate and decide nothing."""
