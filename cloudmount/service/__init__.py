"""A drive that comes up with the computer: units, fstab, credentials, undoing."""
