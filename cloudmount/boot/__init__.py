"""A disk's path -> overlay + running virtual machine."""
