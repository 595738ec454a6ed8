"""Sources (files, disks, machines) -> snapshot."""
