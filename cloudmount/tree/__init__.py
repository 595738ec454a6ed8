"""Repository -> root `Dir`: the one place that decides what the drive looks like."""
