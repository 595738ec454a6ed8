"""Our repository format: frame, pack, disk map, snapshot, index, check. `docs/FORMAT.md` describes it."""
